package connect

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestMemoryOfMessages(t *testing.T) {
	for _, c := range []struct{ sent, size, counted int64 }{
		{0, 0, 0}, {10, 10, 0}, {10, 5, 0}, {5, 10, 0}, {freeMemory + 1, 64 << 20, freeMemory}, {3 << 20, 3 << 20, 2 << 20},
	} {
		sent := strings.Repeat("x", int(c.sent))
		got, err := receive(strings.NewReader(sent), c.size)
		if err != nil || string(got.bytes) != sent[:min(c.sent, c.size)] || got.counted != c.counted || memory.Load() != c.counted {
			t.Errorf("%+v: %d bytes, of which %d count, %v", c, len(got.bytes), got.counted, err)
		}
		got.release()
	}
	memory.Add(totalMemory)
	got, err := receive(bytes.NewReader(make([]byte, 2<<20)), 2<<20)
	if !errors.Is(err, errMemory) {
		t.Errorf("over the limit: %v", err)
	}
	got.release()
	if memory.Add(-totalMemory) != 0 {
		t.Errorf("%d bytes are left", memory.Load())
	}
}
