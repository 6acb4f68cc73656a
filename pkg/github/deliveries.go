package github

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of what is read of GitHub's record of deliveries.
const (
	// lookBack: GitHub keeps deliveries, and delivers again on request, for 3 days
	// (docs.github.com/webhooks/using-webhooks/handling-failed-webhook-deliveries).
	lookBack = 3 * 24 * time.Hour
	// overlap is read again each time: deliveries are listed when they end, not quite in order.
	overlap = 10 * time.Minute
	// deliveryPages of perPage are read at a time.
	deliveryPages = 100
	// maxDelivery bounds one delivery with its request and response, in bytes. Events that are fetched have far less: texts in them have
	// at most 64 KiB. Only a push, which is not fetched, is made as large as somebody likes.
	maxDelivery = 16 << 20
	// enough deliveries in a row that fail end a round: it is nothing of theirs.
	enough = 3
	// longestUnread is the longest time between two tries of a delivery that GitHub does not give out.
	longestUnread = time.Hour
)

// Hook is a repository's webhook; without an ID it is that of the App.
type Hook struct {
	Owner, Name string
	ID          int64
}

// ParseHook reads OWNER/REPOSITORY/ID; an empty text is the App's.
func ParseHook(text string) (Hook, error) {
	if text == "" {
		return Hook{}, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) == 3 && loginPattern.MatchString(parts[0]) && repositoryName(parts[1]) {
		if id, err := strconv.ParseInt(parts[2], 10, 64); err == nil && id > 0 {
			return Hook{parts[0], parts[1], id}, nil
		}
	}
	return Hook{}, &rollout.Error{
		Reason: rollout.ReasonInvalid, Field: "github-hook", Message: fmt.Sprintf("%q is no webhook of a repository", text),
		Hint: "give OWNER/REPOSITORY/ID; `gh api repos/OWNER/REPOSITORY/hooks` lists the ids",
	}
}

// Delivery is an attempt of GitHub's to deliver an event.
type Delivery struct {
	ID int64 `json:"id"`
	// GUID of the event: all attempts to deliver it have it.
	GUID        string    `json:"guid"`
	DeliveredAt time.Time `json:"delivered_at"`
	Redelivery  bool      `json:"redelivery"`
	// StatusCode of the answer; 0 without one.
	StatusCode   int    `json:"status_code"`
	Event        string `json:"event"`
	Action       string `json:"action"`
	RepositoryID int64  `json:"repository_id"`
}

// ok says whether the delivery was taken.
func (d *Delivery) ok() bool { return d.StatusCode >= 200 && d.StatusCode < 300 }

// HookLog is GitHub's record of what it delivered to one hook. Safe for concurrent use.
type HookLog struct {
	c    *Client
	gh   *github.Client
	path string
}

// HookLog of the App, or with a token of a repository's hook, for which the token needs to be let
// read webhooks, and write them to have something delivered again.
func (c *Client) HookLog(h Hook) (*HookLog, error) {
	switch {
	case c.App() && h.ID != 0:
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "github-hook", Message: "an App's deliveries are those of its own webhook", Hint: "leave out --github-hook"}
	case c.App():
		return &HookLog{c, c.app, "app/hook/deliveries"}, nil
	case h.ID == 0:
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "github-hook", Message: "with a token, GitHub says only what it delivered to a webhook that is named", Hint: "name it with --github-hook, or act as a GitHub App"}
	default:
		return &HookLog{c, c.token, fmt.Sprintf("repos/%s/%s/hooks/%d/deliveries", h.Owner, h.Name, h.ID)}, nil
	}
}

// List a page of deliveries, newest first, and the cursor of the next; both are empty at the end.
func (l *HookLog) List(ctx context.Context, cursor string) (page []Delivery, next string, err error) {
	query := url.Values{"per_page": {strconv.Itoa(perPage)}}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	err = l.c.call(ctx, "list deliveries", true, func(ctx context.Context) (*github.Response, error) {
		req, err := l.gh.NewRequest(http.MethodGet, l.path+"?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		page, next = nil, ""
		resp, err := l.gh.Do(ctx, req, &page)
		if resp != nil {
			next = resp.Cursor
		}
		return resp, err
	})
	return page, next, err
}

// Payload of a delivery: the event as GitHub sent it, or tried to.
func (l *HookLog) Payload(ctx context.Context, id int64) ([]byte, error) {
	var got struct {
		Request struct {
			Payload json.RawMessage
		}
	}
	err := l.c.call(ctx, fmt.Sprintf("read delivery %d", id), true, func(ctx context.Context) (*github.Response, error) {
		req, err := l.gh.NewRequest(http.MethodGet, fmt.Sprintf("%s/%d", l.path, id), nil)
		if err != nil {
			return nil, err
		}
		body := &capped{left: maxDelivery}
		resp, err := l.gh.Do(ctx, req, body)
		if err == nil {
			err = json.Unmarshal(body.Bytes(), &got)
		}
		return resp, err
	})
	return got.Request.Payload, err
}

// Redeliver asks GitHub to deliver it again, with the same GUID. It does so later, and to whatever address the hook has then.
func (l *HookLog) Redeliver(ctx context.Context, id int64) error {
	return l.c.call(ctx, fmt.Sprintf("ask for delivery %d again", id), false, func(ctx context.Context) (*github.Response, error) {
		req, err := l.gh.NewRequest(http.MethodPost, fmt.Sprintf("%s/%d/attempts", l.path, id), nil)
		if err != nil {
			return nil, err
		}
		resp, err := l.gh.Do(ctx, req, nil)
		if accepted := new(github.AcceptedError); errors.As(err, &accepted) {
			err = nil // 202 is what GitHub says to this
		}
		return resp, err
	})
}

var errTooLong = fmt.Errorf("it has more than %d bytes", maxDelivery)

// capped keeps what is written, and fails beyond its bound.
type capped struct {
	bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		return 0, errTooLong
	}
	return c.Buffer.Write(p)
}

// lookFrom is since when deliveries are listed, where newest was listed before.
func lookFrom(newest, now time.Time) time.Time {
	return maxTime(now.Add(-lookBack), newest.Add(-overlap))
}

func maxTime(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// lister is what is needed of HookLog to know what was delivered.
type lister interface {
	List(ctx context.Context, cursor string) (page []Delivery, next string, err error)
}

// since lists what was delivered since then, oldest first. It is not complete if there are
// more than deliveryPages of it: then the oldest are missing.
func since(ctx context.Context, l lister, then time.Time) (all []Delivery, complete bool, err error) {
	cursor := ""
	for range deliveryPages {
		page, next, err := l.List(ctx, cursor)
		if err != nil {
			return nil, false, err
		}
		over := next == ""
		for _, d := range page {
			if d.DeliveredAt.Before(then) {
				over = true
				continue
			}
			all = append(all, d)
		}
		if over {
			complete = true
			break
		}
		cursor = next
	}
	slices.Reverse(all)
	slices.SortStableFunc(all, func(a, b Delivery) int { return a.DeliveredAt.Compare(b.DeliveredAt) })
	return all, complete, nil
}

// gone says that GitHub has no such delivery, or not any more, or will not deliver it again, or that it is more than is read.
func gone(err error) bool {
	return errors.Is(err, errTooLong) || isStatus(err, http.StatusNotFound) || isStatus(err, http.StatusGone) || isStatus(err, http.StatusUnprocessableEntity) || isStatus(err, http.StatusBadRequest)
}

// Waits after GitHub did not answer or refused: longer each time, and as long as it says.
const (
	refusedFor = time.Minute
	longestFor = 5 * time.Minute
)

// restFor says how long to leave GitHub alone after its refusal: what it asks for, a minute at least; 0: it refused nothing.
// See docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api.
func restFor(err error, now time.Time) time.Duration {
	var limit *github.RateLimitError
	var abuse *github.AbuseRateLimitError
	var plain *github.ErrorResponse
	switch {
	case errors.As(err, &limit):
		return max(limit.Rate.Reset.Sub(now), refusedFor)
	case errors.As(err, &abuse):
		if abuse.RetryAfter != nil {
			return max(*abuse.RetryAfter, refusedFor)
		}
		return refusedFor
	case errors.As(err, &plain) && plain.Response != nil:
		code, header := plain.Response.StatusCode, plain.Response.Header
		if code != http.StatusForbidden && code != http.StatusTooManyRequests && code != http.StatusUnauthorized {
			return 0
		}
		if s, err := strconv.Atoi(header.Get("Retry-After")); err == nil {
			return max(time.Duration(min(s, 86400))*time.Second, refusedFor)
		}
		if at, err := strconv.ParseInt(header.Get("X-RateLimit-Reset"), 10, 64); err == nil && header.Get("X-RateLimit-Remaining") == "0" {
			return max(time.Unix(at, 0).Sub(now), refusedFor)
		}
		return refusedFor
	}
	return 0
}

// backOff after a delivery failed for the nth time, with a look at each every.
func backOff(every time.Duration, n int) time.Duration {
	return doubled(every, n, max(longestUnread, every))
}

// doubled is the nth of waits that begin with first and become twice as long each time, up to the longest.
func doubled(first time.Duration, n int, longest time.Duration) time.Duration {
	for range n - 1 {
		first = min(2*first, longest)
	}
	return first
}

// rounds calls round until ctx ends: each time after every, sooner if it says so, and after a failure after
// ever longer waits, and not before GitHub lets it.
func rounds(ctx context.Context, first, every time.Duration, round func(context.Context) (again time.Duration, err error), failed func(err error, wait time.Duration)) {
	wait, backoff := first, time.Duration(0)
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		again, err := round(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			backoff = min(max(2*backoff, every), max(longestFor, every))
			wait = max(backoff, restFor(err, time.Now()))
			failed(err, wait)
		default:
			backoff = 0
			if wait = every; again > 0 {
				wait = min(again, every)
			}
		}
	}
}
