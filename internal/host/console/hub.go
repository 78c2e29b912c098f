package console

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hatchvm/hatch/internal/logkey"
)

const (
	maxScrollback = 64 << 10 // bytes
	chunkSize     = 32 << 10 // bytes of one read
	watcherQueue  = 128      // chunks that a watcher may lag behind
	writeTimeout  = 5 * time.Second
)

// How fast a console is read. A guest that writes without end would else take hatchd
// a good part of a CPU, because it arrives in pieces of few bytes. Between two reads
// more comes together; what does not fit into the buffer between, QEMU makes the guest
// wait for, and Firecracker drops. A burst is as much as a guest prints when it boots.
const (
	readsPerSecond = 200
	readsBurst     = 500
	bytesPerSecond = 1 << 20
	bytesBurst     = 4 << 20
)

// lostMark replaces the output that a slow watcher missed.
const lostMark = "\r\n[hatch: output was lost here]\r\n"

// hub is one open console. One goroutine reads from the guest, another owns
// everything else, so that there is no gap between a watcher's history and its
// live output.
type hub struct {
	conn   net.Conn
	cancel context.CancelFunc // ends a wait of the reader
	log    *slog.Logger
	chunks chan output
	joins  chan chan *watcher
	leaves chan *watcher
	done   chan struct{} // closed when the hub has ended
	work   sync.WaitGroup
	writer chan struct{} // capacity 1: full while a client may write
}

// output is what one read of a console has returned.
type output struct {
	text []byte
	at   time.Time
}

// watcher is one subscription to a console's output.
type watcher struct {
	history    history     // the log before the subscription
	scrollback []byte      // its end
	live       chan output // the output since; closed at the end
	behind     bool        // has missed output; owned by the hub
}

func newHub(conn net.Conn, file *logFile, log *slog.Logger) *hub {
	ctx, cancel := context.WithCancel(context.Background())
	h := &hub{
		conn: conn, cancel: cancel, log: log, chunks: make(chan output), joins: make(chan chan *watcher),
		leaves: make(chan *watcher), done: make(chan struct{}), writer: make(chan struct{}, 1),
	}
	h.work.Go(func() { h.read(ctx) })
	h.work.Go(func() { h.run(file) })
	return h
}

// close ends the hub and waits for it.
func (h *hub) close() {
	_ = h.conn.Close()
	h.cancel()
	h.work.Wait()
}

// read passes the guest's output on until the connection ends.
func (h *hub) read(ctx context.Context) {
	defer close(h.chunks)
	reads := rate.NewLimiter(readsPerSecond, readsBurst)
	amount := rate.NewLimiter(bytesPerSecond, bytesBurst)
	buf := make([]byte, chunkSize)
	for {
		n, err := h.conn.Read(buf)
		if n > 0 {
			h.chunks <- output{bytes.Clone(buf[:n]), time.Now()}
		}
		if err != nil {
			return
		}
		// A wait ends early only when the console closes, and then so does the next read.
		_ = reads.Wait(ctx)
		_ = amount.WaitN(ctx, n)
	}
}

func (h *hub) run(file *logFile) {
	watchers := map[*watcher]bool{}
	var scrollback []byte
	failing := false // the last write to the log failed
	defer func() {
		close(h.done)
		for w := range watchers {
			close(w.live)
		}
		if err := file.close(); err != nil {
			h.log.Error("cannot close the console log", logkey.Error, err)
		}
	}()
	for {
		select {
		case chunk, ok := <-h.chunks:
			if !ok {
				return
			}
			err := file.write(chunk.text, chunk.at)
			if err != nil && !failing { // once: the guest could fill hatchd's log
				h.log.Error("cannot write the console log", logkey.Error, err)
			}
			failing = err != nil
			scrollback = append(scrollback, chunk.text...)
			scrollback = scrollback[max(0, len(scrollback)-maxScrollback):]
			for w := range watchers {
				w.send(chunk)
			}
		case reply := <-h.joins:
			w := &watcher{history: file.history(), scrollback: append([]byte(nil), scrollback...), live: make(chan output, watcherQueue)}
			watchers[w] = true
			reply <- w
		case w := <-h.leaves:
			if watchers[w] {
				delete(watchers, w)
				close(w.live)
			}
		}
	}
}

// send never blocks: a watcher that is too slow misses output and gets lostMark.
func (w *watcher) send(chunk output) {
	if w.behind {
		select {
		case w.live <- output{[]byte(lostMark), chunk.at}:
			w.behind = false
		default:
			return
		}
	}
	select {
	case w.live <- chunk:
	default:
		w.behind = true
	}
}

// subscribe returns a new watcher, or nil when the console has ended.
func (h *hub) subscribe() *watcher {
	reply := make(chan *watcher, 1)
	select {
	case h.joins <- reply:
		return <-reply
	case <-h.done:
		return nil
	}
}

// unsubscribe ends a watcher. It may be called again.
func (h *hub) unsubscribe(w *watcher) {
	w.history.close()
	select {
	case h.leaves <- w:
	case <-h.done:
	}
}

func (h *hub) acquireWriter() bool {
	select {
	case h.writer <- struct{}{}:
		return true
	default:
		return false
	}
}

func (h *hub) releaseWriter() { <-h.writer }

// write types into the guest. It fails after writeTimeout when the guest does not
// read.
func (h *hub) write(p []byte) (int, error) {
	if err := h.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, errors.New("the console has closed")
	}
	return h.conn.Write(p)
}
