//go:build linux

package jail

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxWords is how many bytes are kept of what one process says.
const MaxWords = 64 << 10

// lastWords is how many bytes of its end go into an error.
const lastWords = 400

// Words is what a process says: copied to a file of bounded size, however much
// comes. It comes through a pipe, because a process cannot be kept from
// growing a file of its own.
type Words struct {
	pipe   *os.File
	close  context.CancelFunc // of what CopyWords waits for
	copier sync.WaitGroup

	mu   sync.Mutex
	last []byte // the end of what came
}

// CopyWords starts to copy from pipe to the end of file, of which so many bytes
// are written already. Both are the Words' own from here on. Lines that say
// nothing, by a phrase in them, are left out. A process that says more than is
// kept is read slowly: its pipe is full then, and the work of it is its own.
func CopyWords(pipe, file *os.File, written int64, nothing ...string) *Words {
	return copyWords(pipe, file, written, rest, nothing...)
}

func copyWords(pipe, file *os.File, written int64, rest func(context.Context), nothing ...string) *Words {
	ctx, cancel := context.WithCancel(context.Background())
	w, room := &Words{pipe: pipe, close: cancel}, int64(MaxWords)-written
	w.copier.Go(func() {
		defer func() { _ = file.Close() }()
		lines := bufio.NewReader(pipe)
		inVain := 0 // bytes read and not kept
		for {
			line, err := lines.ReadSlice('\n')
			read := len(line)
			if saysNothing(line, nothing) {
				line = nil
			}
			w.remember(line)
			kept := min(len(line), int(max(room, 0)))
			room -= int64(kept)
			_, _ = file.Write(line[:kept]) // a full disk must not stop the process
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
			if inVain += read - kept; inVain >= restEvery {
				inVain %= restEvery
				rest(ctx)
			}
		}
	})
	return w
}

// restEvery is how many bytes are read in vain before a rest.
const restEvery = 64 << 10

// rest leaves a process that says too much alone for a moment.
func rest(ctx context.Context) {
	timer := time.NewTimer(10 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func saysNothing(line []byte, phrases []string) bool {
	return slices.ContainsFunc(phrases, func(phrase string) bool { return bytes.Contains(line, []byte(phrase)) })
}

func (w *Words) remember(data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = append(w.last, data...)
	if over := len(w.last) - lastWords; over > 0 {
		w.last = append(w.last[:0], w.last[over:]...)
	}
}

// AtEnd waits for the end of the process's words and returns the last line of
// them. Precondition: the process is gone.
func (w *Words) AtEnd() string {
	w.copier.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.TrimSpace(string(bytes.ToValidUTF8(w.last, []byte("?"))))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// EndWithin bounds AtEnd: others may hold the pipe, too, and live on.
func (w *Words) EndWithin(d time.Duration) { _ = w.pipe.SetReadDeadline(time.Now().Add(d)) }

// Close stops listening.
func (w *Words) Close() {
	w.close()
	_ = w.pipe.Close()
	w.copier.Wait()
}
