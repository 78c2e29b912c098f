package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

func TestGuardRefusesHostileFrames(t *testing.T) {
	data := append(frame(typeData, 0, 1, 24), bytes.Repeat([]byte{0, 0, 0, 1}, 6)...) // a payload that looks like SYN
	ping := frame(typePing, flagSYN, 0, 7)
	for _, c := range []struct {
		name    string
		bytes   []byte
		hostile bool
	}{
		{"data and ping answers", bytes.Repeat(append(data, frame(typePing, 2, 0, 7)...), 100), false},
		{"some pings", bytes.Repeat(ping, 10), false},
		{"a flood of pings", bytes.Repeat(ping, 12), true},
		{"a stream opened by the guest", frame(1, flagSYN, 2, 0), true},
		{"the same with data", frame(typeData, flagSYN, 2, 0), true},
		{"an unknown frame", frame(4, 0, 0, 0), true},
	} {
		for _, chunk := range []int{1, 7, 4096} {
			g := newGuard(bytes.NewReader(c.bytes))
			out, err := io.ReadAll(struct{ io.Reader }{&chunkReader{g, chunk}})
			if hostile := errors.Is(err, errHostile); hostile != c.hostile {
				t.Errorf("%s in pieces of %d: %v", c.name, chunk, err)
			}
			if !c.hostile && !bytes.Equal(out, c.bytes) {
				t.Errorf("%s in pieces of %d: changed in transit", c.name, chunk)
			}
		}
	}
}

type chunkReader struct {
	r    io.Reader
	size int
}

func (c *chunkReader) Read(p []byte) (int, error) { return c.r.Read(p[:min(c.size, len(p))]) }

func TestHandshakeEndsOnEndlessGarbage(t *testing.T) {
	for name, garbage := range map[string]string{"lines": "x\n", "no lines": "xxxx", "handshakes of others": handshakeLine{wordGo, 1, newNonce()}.String()} {
		r := &lineReader{buf: bufio.NewReaderSize(endless(garbage), lineLimit)}
		if _, err := r.await(wordAck, newNonce()); !errors.Is(err, errNoHandshake) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type endless string

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

// hostileGuest completes the handshake, and then sends the test's bytes.
func hostileGuest(conn net.Conn, sent []byte) {
	defer func() { _ = conn.Close() }()
	_, rest, err := answer(conn)
	if err != nil {
		return
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, rest)
	}()
	_, _ = conn.Write(sent)
	_ = conn.Close()
	<-drained
}

// FuzzClient has a guest that sends any bytes in a session: hatchd must not panic, hang or
// leak.
func FuzzClient(f *testing.F) {
	f.Add(frame(1, 2, 1, 0))
	f.Add(append(frame(typeData, 2, 1, 6), "\x00\x00\x00\x02{}"...))
	f.Add(append(frame(typeData, 2, 1, 4), "\xff\xff\xff\xff"...))
	f.Add(bytes.Repeat(frame(typePing, flagSYN, 0, 1), 20))
	f.Fuzz(func(t *testing.T, sent []byte) {
		host, guest := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			hostileGuest(guest, sent)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := Connect(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Hello(ctx)
		_, _ = c.Activity(ctx)
		if _, content, err := c.ReadFile(ctx, ReadFileArgs{Length: -1}); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(content, 1<<20))
			_ = content.Close()
		}
		_ = c.ListFiles(ctx, PathArgs{}, func(FileInfo) error { return nil })
		_ = c.Watch(ctx, func(Status) error { return nil })
		_ = c.Close()
		<-done
		if ctx.Err() != nil {
			t.Error("the client hung until its deadline")
		}
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add("junk" + handshakeLine{wordSync, 1, newNonce()}.String())
	f.Add("hatch-agent sync 99999999999999999999 x\n\n")
	f.Fuzz(func(t *testing.T, given string) {
		nonce := newNonce()
		rw := struct {
			io.Reader
			io.Writer
		}{strings.NewReader(given + handshakeLine{wordSync, 3, nonce}.String() + handshakeLine{wordStart, 1, nonce}.String() + "rest"), io.Discard}
		version, rest, err := answer(rw)
		if err != nil {
			t.Fatalf("bytes before the handshake break it: %v", err)
		}
		if left, _ := io.ReadAll(rest); version == 1 && !strings.HasSuffix(string(left), "rest") {
			t.Errorf("bytes of the session are lost: %q", left)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x20{\"ok\":true,\"result\":{\"a\":[1,2]}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var st Status
		r := bytes.NewReader(raw)
		if err := readResult(r, &st); err == nil && len(raw)-r.Len() > maxMessage+4 {
			t.Error("readResult read more than a message")
		}
	})
}
