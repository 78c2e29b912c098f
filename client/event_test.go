package client

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// readAll returns the messages of a stream.
func readAll(stream io.Reader) (all []message, err error) {
	for m, err := range messages(stream) {
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
	return all, nil
}

func TestMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		stream string
		want   []message
	}{
		"an incomplete message at the end": {
			":\nid: 7\n\nretry: 5\nid: 8\nevent: x\ndata: {\"a\": 1}\n\nid: 9\ndata: cut",
			[]message{{lastID: "7"}, {lastID: "8", data: `{"a": 1}`, retry: 5 * time.Millisecond}},
		},
		"several lines of data":        {"data: a\ndata\ndata:b\ndata:  c\n\n", []message{{data: "a\n\nb\n c"}}},
		"all line ends":                {"data: a\r\rdata: b\r\n\r\ndata: c\n\r\ndata: d\r\n\n", []message{{data: "a"}, {data: "b"}, {data: "c"}, {data: "d"}}},
		"a byte order mark":            {"\uFEFFdata: a\n\n", []message{{data: "a"}}},
		"a mark that is not the first": {"data: a\n\uFEFFdata: b\n\n", []message{{data: "a"}}},
		"comments":                     {": hello\ndata: a\n:data: b\n\n:\n\n", []message{{data: "a"}, {}}},
		"an id for later messages":     {"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", []message{{lastID: "1", data: "a"}, {lastID: "1", data: "b"}, {data: "c"}}},
		"an id with a null":            {"id: 1\n\nid: 2\x00\n\n", []message{{lastID: "1"}, {lastID: "1"}}},
		"bad retries":                  {"retry: 5s\n\nretry: -5\n\nretry: 99999999999\n\nretry\n\n", []message{{}, {}, {}, {}}},
		"unknown fields":               {"DATA: a\ndata : b\n data: c\n\n", []message{{}}},
		"an empty stream":              {"", nil},
		"half a mark":                  {"\xef\xbb", nil},
	} {
		t.Run(name, func(t *testing.T) {
			for how, in := range map[string]io.Reader{"whole": strings.NewReader(tc.stream), "byte by byte": iotest.OneByteReader(strings.NewReader(tc.stream))} {
				if got, err := readAll(in); err != nil || !slices.Equal(got, tc.want) {
					t.Errorf("%s: got %+v, %v", how, got, err)
				}
			}
		})
	}
}

func TestMessagesAreBounded(t *testing.T) {
	line := "data: " + strings.Repeat("x", maxMessageBytes/2) + "\n"
	for name, stream := range map[string]string{
		"a line":    "data: " + strings.Repeat("x", maxMessageBytes) + "\n\n",
		"a message": line + line + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := readAll(strings.NewReader("data: a\n\n" + stream)); !errors.Is(err, errMessageTooLong) || len(got) != 1 {
				t.Errorf("got %d messages, %v", len(got), err)
			}
		})
	}
	if got, err := readAll(strings.NewReader(line + "\n" + line + "\n")); err != nil || len(got) != 2 {
		t.Errorf("within the bounds: got %d messages, %v", len(got), err)
	}
	if _, err := readAll(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a broken stream ends with %v", err)
	}
}

// FuzzMessages reads any stream to its end, and the same messages for every line end
// and for any split into reads.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(":\nid: 7\n\ndata: {}\ndata: 2\n\n"))
	f.Add([]byte("id\n\r\n: :\n\n\n"))
	f.Add([]byte("\uFEFFretry: 10\r\rdata\r\r"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		want, err := readAll(bytes.NewReader(stream))
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, m := range want {
			size += len(m.data) + 1
		}
		if size > len(stream)+1 {
			t.Errorf("%d bytes of data in %d bytes", size, len(stream))
		}
		if got, err := readAll(iotest.OneByteReader(bytes.NewReader(stream))); err != nil || !slices.Equal(got, want) {
			t.Errorf("byte by byte: got %+v, %v; want %+v", got, err, want)
		}
		text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(stream))
		for _, end := range []string{"\n", "\r", "\r\n"} {
			if got, err := readAll(strings.NewReader(strings.ReplaceAll(text, "\n", end))); err != nil || !slices.Equal(got, want) {
				t.Errorf("with %q: got %+v, %v; want %+v", end, got, err, want)
			}
		}
	})
}

// A stream that has lost its server gives up; one that never had a server does so
// at once.
func TestStreamsGiveUp(t *testing.T) {
	var answers int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if answers++; answers > 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "id: 1\ndata: {\"seq\":1}\n\n")
	}))
	t.Cleanup(server.Close)
	for base, want := range map[string]int{server.URL: 1, "http://127.0.0.1:1": 0} {
		t.Run(base, func(t *testing.T) {
			c, err := New(base, "")
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			var last error
			for _, err := range c.StreamEvents(t.Context(), &EventOptions{GiveUp: time.Nanosecond}, nil) {
				if last = err; err == nil {
					got++
				}
			}
			if got != want || last == nil {
				t.Errorf("%d events, then %v", got, last)
			}
		})
	}
}
