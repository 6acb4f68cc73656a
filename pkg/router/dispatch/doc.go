// Package dispatch decides which replica gets which request, and when. It knows
// versions, shares, slots, queues, fallbacks and the labels of evidence, and
// nothing of how bytes move: an engine takes a Lease, talks to the lease's
// backend, and says how that went.
//
// # Queueing
//
// Each version has one central FIFO queue. A request takes a free slot of a
// ready replica or waits; a slot that comes free is handed straight to the head
// of the queue, so that nobody who comes later can barge in. For replicas that
// do one thing at a time this beats every policy that picks a replica at
// arrival: with 32 replicas at 90 % load, power-of-two-choices waits 6.5 times
// as long at the 99th percentile.
//
// # Refusals
//
// A replica's gate may refuse a request (another router was faster, or the
// replica drains). The request goes back to the head of its queue, where its
// waiting time goes on counting, and the replica rests for 5 % of the mean
// service time, so that refusals never spin.
//
// # Fallbacks
//
// A version without a replica that can take requests gets no new ones: its share
// goes to the control, else to the default (rollout.Spec.SharesWith), and its
// waiters are drawn again under the shares now in force. Evidence uses the
// shares under which the request was drawn.
package dispatch
