package client

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
)

// maxMessageBytes bounds one message of a stream, and each of its lines.
const maxMessageBytes = 1 << 20

var errMessageTooLong = fmt.Errorf("a message is larger than %d bytes", maxMessageBytes)

// message is one message of a stream of server-sent events. Without data it
// shows that the stream is alive, and how far it has come.
type message struct {
	lastID string        // of this message or an earlier one
	data   string        // its lines, with a newline between them
	retry  time.Duration // wait before a reconnect, 0 if the message does not say
}

// messages yields the complete messages of a stream, and its error, if any. It
// follows the HTML standard (9.2.6, interpreting an event stream), except that
// it yields messages without data and ignores the event type.
func messages(stream io.Reader) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		lines := newLineReader(stream)
		var lastID string
		for {
			m := message{lastID: lastID}
			err := m.read(lines)
			if errors.Is(err, io.EOF) {
				return // the standard discards an incomplete message
			}
			if !yield(m, err) || err != nil {
				return
			}
			lastID = m.lastID
		}
	}
}

// read reads the fields of one message, up to the blank line at its end.
func (m *message) read(lines *lineReader) error {
	var data []string
	size := 0
	for {
		line, err := lines.next()
		if err != nil {
			return err
		}
		if line == "" {
			m.data = strings.Join(data, "\n")
			return nil
		}
		field, value, _ := strings.Cut(line, ":") // a comment has an empty field
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			if size += len(value) + 1; size > maxMessageBytes {
				return errMessageTooLong
			}
			data = append(data, value)
		case "id":
			if !strings.ContainsRune(value, 0) {
				m.lastID = value
			}
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 32); err == nil {
				m.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// lineReader reads lines that end with CRLF, LF or CR.
type lineReader struct {
	in      *bufio.Reader
	afterCR bool
}

var byteOrderMark = []byte("\uFEFF")

func newLineReader(stream io.Reader) *lineReader {
	in := bufio.NewReader(stream)
	if start, _ := in.Peek(1); len(start) == 1 && start[0] == byteOrderMark[0] {
		if start, _ = in.Peek(len(byteOrderMark)); bytes.Equal(start, byteOrderMark) {
			_, _ = in.Discard(len(byteOrderMark))
		}
	}
	return &lineReader{in: in}
}

// next returns the next line without its end. A line whose end is missing is
// io.EOF.
func (r *lineReader) next() (string, error) {
	var line []byte
	for {
		b, err := r.in.ReadByte()
		if err != nil {
			return "", err
		}
		isCRLF := b == '\n' && r.afterCR
		r.afterCR = b == '\r'
		switch {
		case isCRLF: // the CR has ended the line
		case b == '\n', b == '\r':
			return string(line), nil
		case len(line) == maxMessageBytes:
			return "", errMessageTooLong
		default:
			line = append(line, b)
		}
	}
}
