package httpapi

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"time"
)

// keepAliveEvery is how often an idle stream of events shows that it is there,
// to proxies and to itself.
const keepAliveEvery = 15 * time.Second

// eventWriter writes server-sent events without ids and names.
type eventWriter struct {
	mu    sync.Mutex // one event at a time
	to    io.Writer
	begun bool
}

// keptAlive lets produce write events to w. While it writes none there are
// comments, from its first word on.
func keptAlive(ctx context.Context, w io.Writer, produce func(context.Context, *eventWriter) error) error {
	out := &eventWriter{to: w}
	ctx, cancel := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { out.keepAlive(ctx) })
	defer keeper.Wait()
	defer cancel()
	return produce(ctx, out)
}

// begin shows the client that events will follow.
func (w *eventWriter) begin() error { return w.write([]byte(":\n\n"), true) }

// send writes one event. Every line of data gets a field of its own, for a
// line's end would end the field. Data is text in UTF-8.
func (w *eventWriter) send(data string) error {
	var b bytes.Buffer
	for line := range strings.SplitSeq(lineEnds.Replace(data), "\n") {
		b.WriteString("data: " + line + "\n")
	}
	b.WriteByte('\n')
	return w.write(b.Bytes(), true)
}

// lineEnds makes all that ends a line of events one and the same.
var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

func (w *eventWriter) keepAlive(ctx context.Context) {
	tick := time.NewTicker(keepAliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = w.write([]byte(":\n\n"), false) // the next event tells when the client has gone
		}
	}
}

// write writes text; with first also when nothing has been written before.
func (w *eventWriter) write(text []byte, first bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun && !first {
		return nil
	}
	w.begun = true
	_, err := w.to.Write(text)
	return err
}
