package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
)

const eventsText = `Events, oldest first. The Link header leads to the next page.

With ` + "`Accept: text/event-stream`" + ` it is a stream of server-sent events that begins with the next event, or after the event of ` +
	"`Last-Event-ID`" + ` (or ` + "`after`" + `), without gaps: the id is the event's seq, the name its type, the data the event. ` +
	"If events that come after that position, or since the given time, have been removed, the first event is of type `log.gap`, also on a page."

const vmEventsText = `The events of one VM, as GET /events returns them, also of a deleted VM.`

// Events reads the event log. [event.Service] implements it.
type Events interface {
	Page(ctx context.Context, f event.Filter) (page []event.Event, next int64, err error)
	Follow(ctx context.Context, f event.Filter, send func(events []event.Event, through int64) error) error
}

type eventHandlers struct {
	*door
	events Events
	vms    vmGetter
}

// EventQuery selects events and the form of the answer. It is exported for huma,
// which ignores unexported embedded structs.
type EventQuery struct {
	Type        []string `query:"type,explode" nullable:"false" doc:"Only events of this type; vm.* selects all with that prefix. May be given several times."`
	Since       string   `query:"since" maxLength:"64" doc:"Only events of this time or later: an RFC 3339 time, or how long ago, such as 90m."`
	After       string   `query:"after" maxLength:"20" doc:"Only events after the one with this seq. 0 for all."`
	Limit       int      `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Events on a page."`
	LastEventID string   `header:"Last-Event-ID" maxLength:"20" doc:"As after, which it overrides; browsers send it when they reconnect."`
	Accept      string   `header:"Accept" doc:"text/event-stream for a stream."`
}

type listEventsInput struct {
	VM string `query:"vm" maxLength:"64" doc:"Only events about the VM of this ID."`
	EventQuery
}

func (h *eventHandlers) list(ctx context.Context, in *listEventsInput) (*huma.StreamResponse, error) {
	f, err := in.filter(ctx)
	if err != nil {
		return nil, err
	}
	f.VMID = in.VM
	return h.respond(ctx, f, in.EventQuery, "/events", in.VM)
}

type vmEventsInput struct {
	IDPath
	EventQuery
}

func (h *eventHandlers) listOfVM(ctx context.Context, in *vmEventsInput) (*huma.StreamResponse, error) {
	f, err := in.filter(ctx)
	if err != nil {
		return nil, err
	}
	if err := h.knewVM(ctx, in.ID); err != nil {
		return nil, err
	}
	f.VMID = in.ID
	return h.respond(ctx, f, in.EventQuery, "/vms/"+url.PathEscape(in.ID)+"/events", "")
}

// knewVM returns an error if the caller has no such VM and the event log has no events
// of a deleted one.
func (h *eventHandlers) knewVM(ctx context.Context, id string) error {
	_, missing := h.vms.Get(ctx, scope(ctx), id)
	if !errs.Is(missing, errs.NotFound) {
		return missing
	}
	page, _, err := h.events.Page(ctx, event.Filter{Scope: scope(ctx), VMID: id, Limit: 1})
	if err == nil && len(page) == 0 {
		return missing
	}
	return err
}

// filter decodes the query, in the scope of the caller.
func (q EventQuery) filter(ctx context.Context) (event.Filter, error) {
	f := event.Filter{Scope: scope(ctx), Limit: q.Limit}
	var err error
	if f.Types, err = event.ParsePatterns("type", q.Type); err != nil {
		return f, err
	}
	if f.Since, err = parseSince(q.Since); err != nil {
		return f, err
	}
	field, after := "after", q.After
	if q.LastEventID != "" && q.streamed() {
		field, after = "Last-Event-ID", q.LastEventID
	}
	switch {
	case after != "":
		f.After, err = strconv.ParseInt(after, 10, 64)
		if err != nil || f.After < 0 {
			return f, errs.InvalidField(field, "%q is not the seq of an event", errs.Brief(after)).WithCode("invalid_after")
		}
	case q.streamed() && f.Since.IsZero():
		f.After = event.FromNow
	}
	return f, nil
}

func parseSince(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	ago, err := time.ParseDuration(s)
	if err != nil || ago < 0 {
		return time.Time{}, errs.InvalidField("since", "%q is neither an RFC 3339 time nor how long ago, such as 90m or 24h", errs.Brief(s))
	}
	return time.Now().Add(-ago), nil
}

// streamed reports whether the caller asks for server-sent events.
func (q EventQuery) streamed() bool { return strings.Contains(q.Accept, eventStream) }

// respond answers with a stream of events, or a page whose Link header leads to path.
func (h *eventHandlers) respond(ctx context.Context, f event.Filter, q EventQuery, path, vmID string) (*huma.StreamResponse, error) {
	if q.streamed() {
		return h.eventStream(func(ctx context.Context, w io.Writer) error {
			return h.events.Follow(ctx, f, func(events []event.Event, through int64) error {
				return writeEvents(w, events, through)
			})
		}), nil
	}
	page, next, err := h.events.Page(ctx, f)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(shownEvents(page))
	if err != nil {
		return nil, fmt.Errorf("cannot encode events: %w", err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", "application/json")
		if next != 0 {
			w.Header().Set("Link", "<"+path+"?"+q.nextPage(next, vmID).Encode()+`>; rel="next"`)
		}
		_, _ = w.Write(append(text, '\n')) // an error means that the client has disconnected
	}}, nil
}

func (q EventQuery) nextPage(after int64, vmID string) url.Values {
	v := url.Values{"limit": {strconv.Itoa(q.Limit)}, "after": {strconv.FormatInt(after, 10)}}
	if vmID != "" {
		v.Set("vm", vmID)
	}
	if q.Since != "" {
		v.Set("since", q.Since)
	}
	for _, t := range q.Type {
		v.Add("type", t)
	}
	return v
}

// writeEvents writes server-sent events. Without events, it writes how far the log has
// been read: the client knows where to continue, and both sides detect a closed
// connection.
func writeEvents(w io.Writer, events []event.Event, through int64) error {
	var b bytes.Buffer
	if len(events) == 0 {
		fmt.Fprintf(&b, ":\nid: %d\n\n", through)
	}
	for _, e := range events {
		text, err := json.Marshal(shownEvent(e)) // on one line
		if err != nil {
			return fmt.Errorf("cannot encode an event: %w", err)
		}
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Type, text)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func shownEvents(page []event.Event) []api.Event {
	shown := make([]api.Event, len(page))
	for i, e := range page {
		shown[i] = shownEvent(e)
	}
	return shown
}

func shownEvent(e event.Event) api.Event {
	out := api.Event{
		Seq: e.Seq, ID: e.ID, Type: string(e.Type), VMID: e.VMID, VMName: e.VMName, Message: e.Message,
		Actor:     api.Actor{Kind: string(e.Actor.Kind), ID: e.Actor.ID, Name: e.Actor.Name},
		RequestID: e.RequestID, At: utc(e.At),
	}
	_ = json.Unmarshal(e.Data, &out.Data) // we wrote it; invalid data is left out
	return out
}
