package wire

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/backoff"
)

// The handshake, line by line; N is a nonce that the host chooses:
//
//	host   sync VERSION N    repeated until the agent answers
//	agent  ack VERSION N     one for each sync
//	host   start VERSION N   VERSION is the lower one, which the session uses
//	agent  go VERSION N
//
// Both ends drop other lines, which are the rest of an earlier connection. After go, both
// speak yamux. The host sends nothing between start and go, so that no sync line becomes
// part of the session.
const (
	magic     = "hatch-agent"
	wordSync  = "sync"
	wordAck   = "ack"
	wordStart = "start"
	wordGo    = "go"
)

const (
	lineLimit    = 4 << 10 // a longer line is not part of a handshake
	discardLimit = 4 << 20 // larger than all buffers between host and agent
)

// Backoff between sync lines. Their number is not limited: a guest may boot slowly, or be
// paused.
const (
	minResend = time.Second
	maxResend = 5 * time.Second
)

type handshakeLine struct {
	word    string
	version int
	nonce   string
}

// String begins with a line feed, which ends the partial line of an earlier connection.
func (l handshakeLine) String() string {
	return fmt.Sprintf("\n%s %s %d %s\n", magic, l.word, l.version, l.nonce)
}

// parseLine parses a line of the handshake, and reports whether it is one.
func parseLine(line []byte) (handshakeLine, bool) {
	f := strings.Fields(string(line))
	if len(f) != 4 || f[0] != magic || len(f[3]) != 2*nonceSize {
		return handshakeLine{}, false
	}
	version, err := strconv.Atoi(f[2])
	if err != nil || version < 1 {
		return handshakeLine{}, false
	}
	return handshakeLine{word: f[1], version: version, nonce: f[3]}, true
}

const nonceSize = 16 // bytes

func newNonce() string {
	var b [nonceSize]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return hex.EncodeToString(b[:])
}

// lineReader finds lines of the handshake among other bytes.
type lineReader struct {
	buf       *bufio.Reader
	discarded int
}

var errNoHandshake = errors.New("too many bytes that are not a handshake")

func (r *lineReader) next() (handshakeLine, error) {
	for {
		raw, err := r.buf.ReadSlice('\n')
		if line, ok := parseLine(raw); ok && err == nil {
			return line, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return handshakeLine{}, err
		}
		if r.discarded += len(raw); r.discarded > discardLimit {
			return handshakeLine{}, errNoHandshake
		}
	}
}

// await returns the first line with this word and nonce.
func (r *lineReader) await(word, nonce string) (handshakeLine, error) {
	for {
		line, err := r.next()
		if err != nil {
			return line, err
		}
		if line.word == word && line.nonce == nonce {
			return line, nil
		}
		if r.discarded += lineLimit / 8; r.discarded > discardLimit {
			return line, errNoHandshake
		}
	}
}

// greet is the host's side of the handshake. It waits for an agent until ctx is done, and
// returns a reader of the bytes after the agent's last line.
func greet(ctx context.Context, conn net.Conn) (version int, rest *bufio.Reader, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	lines := &lineReader{buf: bufio.NewReaderSize(conn, lineLimit)}
	nonce := newNonce()

	acked := make(chan struct{})
	sent := make(chan error, 1)
	go func() { sent <- sendSyncs(conn, nonce, acked) }()
	ack, err := lines.await(wordAck, nonce)
	close(acked)
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now()) // interrupts sendSyncs
	}
	if sendErr := <-sent; err == nil {
		err = sendErr
	}
	if err != nil {
		return 0, nil, errors.Join(ctx.Err(), err)
	}
	version = min(ack.version, Version)
	if _, err = io.WriteString(conn, handshakeLine{wordStart, version, nonce}.String()); err == nil {
		_, err = lines.await(wordGo, nonce)
	}
	if err != nil {
		return 0, nil, errors.Join(ctx.Err(), err)
	}
	return version, lines.buf, nil
}

// sendSyncs repeats the sync line until acked is closed. An agent that is still
// in an earlier session drops the first one.
func sendSyncs(w io.Writer, nonce string, acked <-chan struct{}) error {
	resend := backoff.New(minResend, maxResend)
	timer := time.NewTimer(resend.Next())
	defer timer.Stop()
	for {
		if _, err := io.WriteString(w, handshakeLine{wordSync, Version, nonce}.String()); err != nil {
			return err
		}
		select {
		case <-acked:
			return nil
		case <-timer.C:
			timer.Reset(resend.Next())
		}
	}
}

// answer is the agent's side of the handshake. It returns when a host has started a
// session.
func answer(conn io.ReadWriter) (version int, rest *bufio.Reader, err error) {
	lines := &lineReader{buf: bufio.NewReaderSize(conn, lineLimit)}
	nonce := ""
	for {
		line, err := lines.next()
		if err != nil {
			return 0, nil, err
		}
		switch {
		case line.word == wordSync:
			nonce = line.nonce
			_, err = io.WriteString(conn, handshakeLine{wordAck, min(line.version, Version), nonce}.String())
		case line.word == wordStart && line.nonce == nonce:
			_, err = io.WriteString(conn, handshakeLine{wordGo, line.version, nonce}.String())
			if err == nil {
				return line.version, lines.buf, nil
			}
		}
		if err != nil {
			return 0, nil, err
		}
	}
}
