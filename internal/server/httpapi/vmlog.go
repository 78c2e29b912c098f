package httpapi

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

const vmLogsText = `A VM's log as plain text: of its serial console, of the VMM that runs it, or of cloud-init in it. ` +
	`The first two can be read of a VM that is stopped or sleeps, too. With follow it goes on until the caller leaves or the VM ends.

With ` + "`Accept: text/event-stream`" + ` it is a stream of server-sent events, a line each.`

// Values of source.
const (
	fromVMM       = "vmm"
	fromCloudInit = "cloud-init"
)

type vmLogsInput struct {
	IDPath
	Source string `query:"source" enum:"console,vmm,cloud-init" default:"console" doc:"Which log."`
	Tail   int    `query:"tail" minimum:"0" maximum:"1000000" doc:"Lines from the end; 0 (default) for all."`
	Follow bool   `query:"follow" doc:"Go on with what comes."`
	Accept string `header:"Accept" doc:"text/event-stream for a stream of events."`
}

func (d *door) vmLogs(ctx context.Context, in *vmLogsInput) (*huma.StreamResponse, error) {
	if _, err := d.VMs.Get(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	write := d.vmLog(in)
	if in.Follow && in.Source != fromCloudInit { // of which the guest has yet to say whether there is one
		write = atOnce(write)
	}
	if strings.Contains(in.Accept, eventStream) {
		return d.eventStream(asLines(write)), nil
	}
	return d.textStream(in.Follow, write), nil
}

// vmLog returns what writes the log that is asked for.
func (d *door) vmLog(in *vmLogsInput) func(context.Context, io.Writer) error {
	tail := in.Tail
	if tail == 0 {
		tail = -1 // the services' word for all
	}
	return func(ctx context.Context, w io.Writer) error {
		switch in.Source {
		case fromVMM:
			return d.VMs.VMMLog(ctx, owner(ctx), in.ID, tail, in.Follow, w)
		case fromCloudInit:
			return d.Files.CloudInitLog(ctx, owner(ctx), in.ID, tail, in.Follow, w)
		}
		return d.VMs.Log(ctx, owner(ctx), in.ID, tail, in.Follow, w)
	}
}

// asLines makes events of the lines that write writes.
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

// maxLine is the size of the events that a longer line is cut into, in bytes.
const maxLine = 16 << 10

// lineEvents is a writer that sends an event for each line.
type lineEvents struct {
	out  *eventWriter
	line []byte // begun, up to maxLine
}

// Write takes text in pieces of any size; none at all begins the stream.
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
			break // the rest of it is yet to come
		}
		if err := l.send(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// end sends a line that did not end.
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
