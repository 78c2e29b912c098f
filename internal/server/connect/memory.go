package connect

import (
	"errors"
	"io"
	"sync/atomic"
)

// Limits of the memory of messages that clients send, in bytes.
const (
	freeMemory  = 1 << 20   // of one message; it does not count
	totalMemory = 512 << 20 // of the rest of all messages
)

// memory counts the bytes of large messages in this process, so that the clients of some
// sandboxes cannot take hatchd's memory from all others.
var memory atomic.Int64

var errMemory = Errorf(ResourceExhausted, "too many large messages are being received: try again, or send smaller ones")

// text is a message as it was received. It counts until it is released.
type text struct {
	bytes   []byte
	counted int64
}

// release gives the memory of the message back. The message must not be used any more.
func (t *text) release() {
	memory.Add(-t.counted)
	t.bytes, t.counted = nil, 0
}

// receive reads up to size bytes, and uses memory only as they arrive. Fewer are no error.
func receive(r io.Reader, size int64) (*text, error) {
	t := &text{bytes: make([]byte, 0, min(size, 4<<10))}
	for int64(len(t.bytes)) < size {
		if len(t.bytes) == cap(t.bytes) {
			if err := t.grow(min(2*int64(cap(t.bytes)), size)); err != nil {
				return t, err
			}
		}
		n, err := r.Read(t.bytes[len(t.bytes):cap(t.bytes)])
		t.bytes = t.bytes[:len(t.bytes)+n]
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// grow makes room for more bytes, unless there is no memory for them.
func (t *text) grow(size int64) error {
	if more := max(0, size-freeMemory) - t.counted; more > 0 {
		t.counted += more
		if memory.Add(more) > totalMemory {
			return errMemory
		}
	}
	t.bytes = append(make([]byte, 0, size), t.bytes...)
	return nil
}
