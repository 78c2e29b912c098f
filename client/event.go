package client

import (
	"context"
	"encoding/json"
	"errors"
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

// EventOptions say which events are wanted. Zero fields do not narrow.
type EventOptions struct {
	VM       string   // id; the VM may be gone
	Types    []string // any of them; vm.* stands for all that begin so
	Since    time.Time
	After    int64 // Seq of the last event that is known already
	PageSize int   // events per request of ListEvents, 1 to 1000; 0 for the server's default
}

// FromNow as EventOptions.After lets FollowEvents begin with what comes.
const FromNow = -1

// silence is how long a stream may say nothing at all before it counts as
// broken; the server sends something every 15 seconds.
const silence = time.Minute

// ListEvents yields what has happened, oldest first, one page per request, and
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

// FollowEvents yields what has happened and goes on with what comes, until ctx
// is done or the connection ends, which is an error. opts.After is moved along:
// to go on without a gap, follow again with the same opts.
func (c *Client) FollowEvents(ctx context.Context, opts *EventOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		if err := c.followEvents(ctx, opts, yield); err != nil {
			yield(api.Event{}, err)
		}
	}
}

// followEvents returns nil when yield wants no more.
func (c *Client) followEvents(ctx context.Context, opts *EventOptions, yield func(api.Event, error) bool) error {
	path, query, err := opts.target()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errors.New("the server says nothing any more")) })
	defer quiet.Stop()
	req := call{method: http.MethodGet, path: path, query: query, header: http.Header{"Accept": {"text/event-stream"}}}
	body, err := c.stream(ctx, req)
	if err != nil {
		return broken(ctx, err)
	}
	defer body.Close()
	for m, err := range messages(body) {
		if err != nil {
			return broken(ctx, fmt.Errorf("cannot read events: %w", err))
		}
		quiet.Reset(silence)
		if m.place != "" {
			if opts.After, err = strconv.ParseInt(m.place, 10, 64); err != nil {
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
		if !yield(e, nil) {
			return nil
		}
	}
	return broken(ctx, fmt.Errorf("the stream of events has ended: %w", io.ErrUnexpectedEOF))
}

// broken prefers why we ended the stream ourselves.
func broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// target returns the path and query that opts mean.
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
