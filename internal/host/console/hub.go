package console

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	maxScrollback = 64 << 10 // bytes
	chunkSize     = 16 << 10 // bytes read at once
	watcherQueue  = 256      // chunks a watcher may be behind
	writePatience = 5 * time.Second
)

// lost is what a watcher that was too slow sees in place of what it missed.
const lost = "\r\n[hatch: output was lost here]\r\n"

// hub is one open console. One goroutine reads the guest, one owns everything
// else, so that a watcher's past and its live text fit together without a gap.
type hub struct {
	conn   net.Conn
	log    *slog.Logger
	chunks chan []byte
	joins  chan chan *watcher
	leaves chan *watcher
	done   chan struct{} // closed when the hub has ended
	work   sync.WaitGroup
	writer chan struct{} // capacity 1: full while somebody may write
}

// watcher is somebody who follows a console.
type watcher struct {
	past       past        // the log up to the moment of joining
	scrollback []byte      // its end
	live       chan []byte // what came since; closed at the end
	behind     bool        // has missed something; owned by the hub
}

func newHub(conn net.Conn, file *logFile, log *slog.Logger) *hub {
	h := &hub{
		conn: conn, log: log, chunks: make(chan []byte), joins: make(chan chan *watcher),
		leaves: make(chan *watcher), done: make(chan struct{}), writer: make(chan struct{}, 1),
	}
	h.work.Go(h.read)
	h.work.Go(func() { h.run(file) })
	return h
}

// close ends the hub and waits for it.
func (h *hub) close() {
	_ = h.conn.Close()
	h.work.Wait()
}

// read hands over what the guest writes until the connection ends.
func (h *hub) read() {
	defer close(h.chunks)
	for {
		buf := make([]byte, chunkSize)
		n, err := h.conn.Read(buf)
		if n > 0 {
			h.chunks <- buf[:n]
		}
		if err != nil {
			return
		}
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
			h.log.Error("cannot close the console log", "err", err)
		}
	}()
	for {
		select {
		case text, ok := <-h.chunks:
			if !ok {
				return
			}
			err := file.write(text)
			if err != nil && !failing { // the guest sets the pace: say it once
				h.log.Error("cannot write the console log", "err", err)
			}
			failing = err != nil
			scrollback = append(scrollback, text...)
			scrollback = scrollback[max(0, len(scrollback)-maxScrollback):]
			for w := range watchers {
				w.give(text)
			}
		case answer := <-h.joins:
			w := &watcher{past: file.past(), scrollback: append([]byte(nil), scrollback...), live: make(chan []byte, watcherQueue)}
			watchers[w] = true
			answer <- w
		case w := <-h.leaves:
			if watchers[w] {
				delete(watchers, w)
				close(w.live)
			}
		}
	}
}

// give never blocks: a watcher that is too slow misses text and is told so.
func (w *watcher) give(text []byte) {
	if w.behind {
		select {
		case w.live <- []byte(lost):
			w.behind = false
		default:
			return
		}
	}
	select {
	case w.live <- text:
	default:
		w.behind = true
	}
}

// subscribe returns a new watcher, or nil when the console has ended.
func (h *hub) subscribe() *watcher {
	answer := make(chan *watcher, 1)
	select {
	case h.joins <- answer:
		return <-answer
	case <-h.done:
		return nil
	}
}

// unsubscribe ends a watcher. Doing it twice is no error.
func (h *hub) unsubscribe(w *watcher) {
	w.past.close()
	select {
	case h.leaves <- w:
	case <-h.done:
	}
}

func (h *hub) takeWriter() bool {
	select {
	case h.writer <- struct{}{}:
		return true
	default:
		return false
	}
}

func (h *hub) giveWriter() { <-h.writer }

// write types into the guest. A guest that does not read does not hold up the
// person for long.
func (h *hub) write(p []byte) (int, error) {
	if err := h.conn.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return 0, errors.New("the console has closed")
	}
	return h.conn.Write(p)
}
