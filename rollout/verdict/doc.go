// Package verdict decides, from bad events alone and at any moment, whether a
// treatment fails more often than its control. It is pure: no clock, no I/O.
//
// # What is tested
//
// A request that goes to the treatment or to its control goes to the treatment
// with a known probability, its rho = p_T/(p_T+p_C), the shares in force when it was
// assigned. If the treatment fails r times as often as the control, a bad event
// carries the treatment's label with probability rho·r/(rho·r+1−rho), however the
// common failure rate and the shares move in time. That gives two tests on the
// labels of bad events (the Poisson counting-process test of Lindon and Malek,
// "Anytime-valid inference for multinomial count data", NeurIPS 2022, with a
// one-sided grid mixture instead of a Dirichlet one), both sums of log-likelihood
// ratios and hence mergeable across routers by addition:
//
//   - worse (rollback). Null: the ratio is at most R0. Alternatives: R0 times
//     {1.25, 1.5, 2, 3, 5, 10, 30, 100}. Fires at E ≥ 1/Alpha.
//   - not_worse (promotion). Null: the ratio is at least R1. Alternatives: below R1,
//     R0·(R1/R0)^{−1, −½, −¼, 0, 0.2}, that is {0.5, 0.71, 0.84, 1, 1.15} for the
//     defaults R0 = 1 and R1 = 2. Fires at E ≥ 2/Beta.
//
// Neither can promote a pair that never fails, so there is a third, on the
// treatment's own counts:
//
//   - bounded (promotion). Null: the treatment's mean bad rate is at least
//     MaxBadPercent. Alternatives: a fixed mixture over rates below that. Fires at
//     E ≥ 2/Beta.
//
// # What is promised
//
// Each E is a test supermartingale under its null with mean at most 1, so by
// Ville's inequality the probability that it ever reaches 1/level, however often
// and whenever one looks, is at most level. Hence P(ever rolling back a treatment
// that is not more than R0 times as bad) ≤ Alpha. The two promotion rules run at
// Beta/2 each, so P(ever promoting a treatment that is at least R1 times as bad and
// bad more often than MaxBadPercent) ≤ Beta by the union bound. For bounded the rate may
// drift, too: with conditional rates p_i, each factor is 1+λ(x_i−m) with λ < 0, and
// Π(1+λ(p_i−m)) ≤ 1 whenever the mean of the p_i so far is at least m, so that the
// statement is about the mean rate over the requests judged so far.
//
// # Decisions use the present value
//
// [Judge] looks at the evidence as it is now, not at its running maximum. Ville's
// inequality would allow the maximum of one process, but the sum over several
// routers, read at different moments, is not a point of any one path whose
// maximum is known; the present sum is what can be saved, merged and recomputed. So
// a threshold that was crossed and left between two polls is not acted upon:
// that costs a little power when polls are rare, never validity.
//
// # What the caller owes
//
//   - rho is the probability actually applied, fallbacks included. Requests that were not
//     randomised (pinned to a version, replayed) are not observed at all.
//   - A request is observed once, when it completes, as good or bad. Requests in flight
//     are not counted. While failures take longer than successes (timeouts), or longer
//     in one arm than in the other, the evidence runs behind by what is in flight, and
//     the bound in particular sees the quick successes first. Steps should last
//     longer than the scoring timeout.
//   - Bad events must be independent given the share. One cause that breaks many requests
//     of one arm at once (a replica that dies with a hundred requests in flight) is to be
//     observed as one bad event: bursts of ten from one cause raise the false alarms of
//     a 5 % test to tens of per cent. Clients that retry are no such cause, because
//     every attempt is assigned afresh.
package verdict
