package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/api"
)

const events = "/events"

// EventOptions say which events to return. Zero fields do not filter.
type EventOptions struct {
	VM       string   // id, also of a deleted VM
	Types    []string // any of them; vm.* means all types that begin with vm.
	Since    time.Time
	After    int64 // Seq of the last known event
	PageSize int   // events per request of ListEvents, 1 to 1000; 0 for the server's default

	// GiveUp is how long StreamEvents tries to connect again after it has lost the
	// server; 0 means without end. The first connection is then tried only once.
	GiveUp time.Duration
}

// FromNow as EventOptions.After makes a stream begin with new events.
const FromNow = -1

// silenceTimeout is how long a stream may be silent before it counts as broken.
// The server sends a comment every 15 seconds.
const silenceTimeout = time.Minute

// Bounds on the wait before a stream of events is opened again.
const (
	minEventRetry = 250 * time.Millisecond
	maxEventRetry = 10 * time.Second
)

// ListEvents yields the stored events, oldest first, one page per request, and
// ends at the first error.
func (c *Client) ListEvents(ctx context.Context, opts EventOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		path, query, err := opts.target()
		for err == nil {
			var page []api.Event
			var header http.Header
			header, err = c.do(ctx, call{method: http.MethodGet, path: path, query: query}, &page)
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			next := nextCursor(header.Get("Link"))
			if err == nil && next == "" {
				return
			}
			query.Set("after", next)
		}
		yield(api.Event{}, err)
	}
}

// FollowEvents yields the stored events, then new ones, until ctx is done or the
// connection ends, which is an error. It advances opts.After: to continue
// where it ended, call it again with the same opts, or use [Client.StreamEvents].
func (c *Client) FollowEvents(ctx context.Context, opts *EventOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		if err := c.followEvents(ctx, opts, &backoff{}, yield); err != nil {
			yield(api.Event{}, err)
		}
	}
}

// StreamEvents is FollowEvents that reconnects, with a backoff, and misses no
// event that the server keeps: in place of removed ones it yields one of type
// [api.EventGap]. It ends with an error when ctx is done, the server refuses, or
// opts.GiveUp has passed. lost may be nil; it is called with the error of a lost
// connection, once until the next event comes.
func (c *Client) StreamEvents(ctx context.Context, opts *EventOptions, lost func(error)) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		retry := &backoff{min: minEventRetry, max: maxEventRetry, giveUp: opts.GiveUp}
		for {
			err := c.followEvents(ctx, opts, retry, yield)
			if err == nil {
				return
			}
			if ctx.Err() == nil && !isFinal(err) && !retry.isOver() {
				if lost != nil && retry.next == 0 {
					lost(err)
				}
				if err = retry.wait(ctx, err); err == nil {
					continue
				}
			}
			yield(api.Event{}, err)
			return
		}
	}
}

// followEvents follows events on one connection. It returns nil if yield does.
// An event resets retry.
func (c *Client) followEvents(ctx context.Context, opts *EventOptions, retry *backoff, yield func(api.Event, error) bool) error {
	path, query, err := opts.target()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(silenceTimeout, func() { cancel(fmt.Errorf("the server has sent nothing for %s", silenceTimeout)) })
	defer silence.Stop()
	req := call{method: http.MethodGet, path: path, query: query, header: http.Header{"Accept": {"text/event-stream"}}}
	body, err := c.stream(ctx, req)
	if err != nil {
		return causeOr(ctx, err)
	}
	defer body.Close()
	for m, err := range messages(body) {
		if err != nil {
			return causeOr(ctx, fmt.Errorf("cannot read events: %w", err))
		}
		silence.Reset(silenceTimeout)
		retry.alive = time.Now()
		if m.retry > 0 {
			retry.min = max(m.retry, minEventRetry)
		}
		if m.lastID != "" {
			if opts.After, err = strconv.ParseInt(m.lastID, 10, 64); err != nil {
				return fmt.Errorf("cannot read events: %w", err)
			}
		}
		if m.data == "" {
			continue
		}
		var e api.Event
		if err := json.Unmarshal([]byte(m.data), &e); err != nil {
			return fmt.Errorf("cannot read an event: %w", err)
		}
		retry.next = 0
		if !yield(e, nil) {
			return nil
		}
	}
	return causeOr(ctx, fmt.Errorf("the stream of events has ended: %w", io.ErrUnexpectedEOF))
}

// causeOr returns why ctx was cancelled, or err if it was not.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// target returns the path and query for opts.
func (o EventOptions) target() (path string, query url.Values, err error) {
	path = events
	if o.VM != "" {
		if path, err = item(vms, o.VM, "events"); err != nil {
			return "", nil, err
		}
	}
	query = url.Values{}
	for _, t := range o.Types {
		query.Add("type", t)
	}
	if !o.Since.IsZero() {
		query.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.After != FromNow {
		query.Set("after", strconv.FormatInt(o.After, 10))
	}
	if o.PageSize > 0 {
		query.Set("limit", strconv.Itoa(o.PageSize))
	}
	return path, query, nil
}
