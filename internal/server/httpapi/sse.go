package httpapi

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"time"
)

// keepAliveInterval is how often an idle stream sends a comment, so that proxies keep
// the connection and hatchd notices a closed one.
const keepAliveInterval = 15 * time.Second

// eventWriter writes server-sent events without ids and names.
type eventWriter struct {
	mu    sync.Mutex // one event at a time
	to    io.Writer
	begun bool
}

// keptAlive runs produce, which writes events to w. After its first write, it sends a
// comment while produce is idle.
func keptAlive(ctx context.Context, w io.Writer, produce func(context.Context, *eventWriter) error) error {
	out := &eventWriter{to: w}
	ctx, cancel := context.WithCancel(ctx)
	var keepAlive sync.WaitGroup
	keepAlive.Go(func() { out.keepAlive(ctx) })
	defer keepAlive.Wait()
	defer cancel()
	return produce(ctx, out)
}

// begin starts the answer without an event.
func (w *eventWriter) begin() error { return w.write([]byte(":\n\n"), true) }

// send writes one event, with a field for each line of data, because the end of a
// line ends a field. data is UTF-8.
func (w *eventWriter) send(data string) error {
	var b bytes.Buffer
	for line := range strings.SplitSeq(lineEnds.Replace(data), "\n") {
		b.WriteString("data: " + line + "\n")
	}
	b.WriteByte('\n')
	return w.write(b.Bytes(), true)
}

// lineEnds turns every line end of server-sent events into "\n".
var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

func (w *eventWriter) keepAlive(ctx context.Context) {
	tick := time.NewTicker(keepAliveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = w.write([]byte(":\n\n"), false) // the next event reports a client that has disconnected
		}
	}
}

// write writes text; as the first output only with first.
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
