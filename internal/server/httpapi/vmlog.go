package httpapi

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

const vmLogsText = `A VM's log as plain text: of its serial console, of the VMM that runs it, or of cloud-init in it. ` +
	`The first two can also be read of a stopped or sleeping VM. With follow it continues until the client disconnects or the VM ends.

With ` + "`Accept: text/event-stream`" + ` it is a stream of server-sent events, one per line.`

// Values of source.
const (
	fromVMM       = "vmm"
	fromCloudInit = "cloud-init"
)

// outputHandlers serves what VMs print.
type outputHandlers struct {
	*door
	vms interface {
		vmGetter
		Screen
	}
	files interface {
		CloudInitLog(ctx context.Context, scope access.Scope, vmID string, lines int, follow bool, w io.Writer) error
	}
}

type vmLogsInput struct {
	IDPath
	Since      string `query:"since" maxLength:"64" doc:"Only lines of the console that began at a time (RFC 3339) or later, or within a duration such as 90m." example:"15m"`
	Timestamps bool   `query:"timestamps" doc:"Before each line of the console when it began, as 2026-01-02T15:04:05.123Z, or - if that is not known."`
	Source     string `query:"source" enum:"console,vmm,cloud-init" default:"console" doc:"Which log."`
	Tail       int    `query:"tail" minimum:"0" maximum:"1000000" doc:"Lines from the end; 0 (default) for all."`
	Follow     bool   `query:"follow" doc:"Continue with new lines."`
	Accept     string `header:"Accept" doc:"text/event-stream for a stream of events."`
}

func (h *outputHandlers) logs(ctx context.Context, in *vmLogsInput) (*huma.StreamResponse, error) {
	if _, err := h.vms.Get(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	write, err := h.logWriter(in)
	if err != nil {
		return nil, err
	}
	if in.Follow && in.Source != fromCloudInit { // the guest may have none
		write = atOnce(write)
	}
	if strings.Contains(in.Accept, eventStream) {
		return h.eventStream(asLines(write)), nil
	}
	return h.textStream(in.Follow, write), nil
}

// logWriter returns the function that writes the log of in.Source.
func (h *outputHandlers) logWriter(in *vmLogsInput) (func(context.Context, io.Writer) error, error) {
	since, err := parseSince(in.Since)
	if err != nil {
		return nil, err
	}
	if in.Source == fromVMM || in.Source == fromCloudInit {
		for field, given := range map[string]bool{"since": in.Since != "", "timestamps": in.Timestamps} {
			if given {
				return nil, errs.InvalidField(field, "the log of source %s does not say when its lines came; that of the console does", in.Source)
			}
		}
	}
	tail := in.Tail
	if tail == 0 {
		tail = -1 // all, for the services
	}
	return func(ctx context.Context, w io.Writer) error {
		switch in.Source {
		case fromVMM:
			return h.vms.VMMLog(ctx, scope(ctx), in.ID, tail, in.Follow, w)
		case fromCloudInit:
			return h.files.CloudInitLog(ctx, scope(ctx), in.ID, tail, in.Follow, w)
		}
		return h.vms.Log(ctx, scope(ctx), in.ID, vm.LogQuery{Tail: tail, Follow: in.Follow, Since: since, Timestamps: in.Timestamps}, w)
	}, nil
}

// asLines turns the lines that write writes into events.
func asLines(write func(context.Context, io.Writer) error) func(context.Context, io.Writer) error {
	return func(ctx context.Context, w io.Writer) error {
		return keptAlive(ctx, w, func(ctx context.Context, out *eventWriter) error {
			lines := &lineEvents{out: out}
			if err := write(ctx, lines); err != nil {
				return err
			}
			return lines.end()
		})
	}
}

// maxLine is the largest event in bytes; a longer line is split.
const maxLine = 16 << 10

// lineEvents is a writer that sends an event for each line.
type lineEvents struct {
	out  *eventWriter
	line []byte // incomplete, up to maxLine
}

// Write accepts text in pieces of any size; an empty one begins the stream.
func (l *lineEvents) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, l.out.begin()
	}
	for rest := p; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		end = min(end, maxLine-len(l.line))
		l.line, rest = append(l.line, rest[:end]...), rest[end:]
		if len(l.line) < maxLine && l.line[len(l.line)-1] != '\n' {
			break // the line is incomplete
		}
		if err := l.send(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// end sends an incomplete last line.
func (l *lineEvents) end() error {
	if len(l.line) == 0 {
		return nil
	}
	return l.send()
}

func (l *lineEvents) send() error {
	text := strings.TrimRight(string(l.line), "\r\n")
	l.line = l.line[:0]
	return l.out.send(valid(text))
}
