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

// MaxOutput bounds the file with the output of a process, in bytes.
const MaxOutput = 64 << 10

// tailSize is how many bytes of the output's end an error may quote.
const tailSize = 400

// Output copies the output of a process to a file of bounded size. The process
// writes to a pipe: nothing could stop it from growing a file.
type Output struct {
	pipe   *os.File
	stop   context.CancelFunc // ends a pause of the copier
	copier sync.WaitGroup

	mu   sync.Mutex
	tail []byte
}

// CopyOutput starts to copy from pipe to the end of file, which contains written
// bytes. Output owns both from now on. It drops lines that contain one of the
// phrases in ignored. Output beyond the bound is read slowly, so that a process
// that writes too much waits for its full pipe instead of using a CPU of the host.
func CopyOutput(pipe, file *os.File, written int64, ignored ...string) *Output {
	return copyOutput(pipe, file, written, pause, ignored...)
}

func copyOutput(pipe, file *os.File, written int64, pause func(context.Context), ignored ...string) *Output {
	ctx, cancel := context.WithCancel(context.Background())
	o, left := &Output{pipe: pipe, stop: cancel}, int64(MaxOutput)-written
	o.copier.Go(func() {
		defer func() { _ = file.Close() }()
		lines := bufio.NewReader(pipe)
		dropped := 0 // bytes since the last pause
		for {
			line, err := lines.ReadSlice('\n')
			read := len(line)
			if slices.ContainsFunc(ignored, func(phrase string) bool { return bytes.Contains(line, []byte(phrase)) }) {
				line = nil
			}
			o.addToTail(line)
			kept := min(len(line), int(max(left, 0)))
			left -= int64(kept)
			_, _ = file.Write(line[:kept]) // a full disk must not stop the process
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
			if dropped += read - kept; dropped >= pauseEvery {
				dropped %= pauseEvery
				pause(ctx)
			}
		}
	})
	return o
}

// pauseEvery is how many dropped bytes are read before a pause.
const pauseEvery = 64 << 10

func pause(ctx context.Context) {
	timer := time.NewTimer(10 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (o *Output) addToTail(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, data...)
	if over := len(o.tail) - tailSize; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
}

// LastLine waits for the end of the output and returns its last line.
// Precondition: the process has ended.
func (o *Output) LastLine() string {
	o.copier.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(string(bytes.ToValidUTF8(o.tail, []byte("?"))))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// SetTimeout bounds LastLine: other processes may have the pipe open too.
func (o *Output) SetTimeout(d time.Duration) { _ = o.pipe.SetReadDeadline(time.Now().Add(d)) }

// Close stops copying.
func (o *Output) Close() {
	o.stop()
	_ = o.pipe.Close()
	o.copier.Wait()
}
