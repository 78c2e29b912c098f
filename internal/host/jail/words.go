//go:build linux

package jail

import (
	"bufio"
	"bytes"
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
	copier sync.WaitGroup

	mu   sync.Mutex
	last []byte // the end of what came
}

// CopyWords starts to copy from pipe to the end of file, of which so many bytes
// are written already. Both are the Words' own from here on. Lines that say
// nothing, by a phrase in them, are left out.
func CopyWords(pipe, file *os.File, written int64, nothing ...string) *Words {
	w, room := &Words{pipe: pipe}, int64(MaxWords)-written
	w.copier.Go(func() {
		defer func() { _ = file.Close() }()
		lines := bufio.NewReader(pipe)
		for {
			line, err := lines.ReadSlice('\n')
			if saysNothing(line, nothing) {
				line = nil
			}
			w.remember(line)
			kept := min(int64(len(line)), max(room, 0))
			room -= kept
			_, _ = file.Write(line[:kept]) // a full disk must not stop the process
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	})
	return w
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
	_ = w.pipe.Close()
	w.copier.Wait()
}
