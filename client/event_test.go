package client

import (
	"bufio"
	"bytes"
	"strings"
	"testing"
)

func TestReadMessage(t *testing.T) {
	lines := bufio.NewScanner(strings.NewReader(":\nid: 7\n\nretry: 5\nid: 8\nevent: x\ndata: {\"a\": 1}\n\nid: 9\ndata: cut"))
	want := []message{{place: "7"}, {place: "8", data: `{"a": 1}`}}
	for _, w := range want {
		if got, ok := readMessage(lines); got != w || !ok {
			t.Errorf("got %+v, %v; want %+v", got, ok, w)
		}
	}
	if got, ok := readMessage(lines); ok {
		t.Errorf("half a message is read as %+v", got)
	}
}

// FuzzReadMessage reads any bytes to their end, within the scanner's bounds.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte(":\nid: 7\n\ndata: {}\n\n"))
	f.Add([]byte("id\n\r\n: :\n\n\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		lines := bufio.NewScanner(bytes.NewReader(stream))
		lines.Buffer(nil, 4096)
		for read := 0; ; read++ {
			m, ok := readMessage(lines)
			if !ok {
				return
			}
			if read > len(stream) || len(m.data) > 4096 || strings.Contains(m.data, "\n") {
				t.Fatalf("message %d is %+v", read, m)
			}
		}
	})
}
