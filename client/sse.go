package client

import (
	"bufio"
	"io"
	"iter"
	"strings"
)

// maxEventLine bounds one line of a stream, in bytes.
const maxEventLine = 1 << 20

// message is one of a stream: how far it has come, and an event or nothing.
type message struct{ place, data string }

// messages yields a stream's whole messages, and last an error if it broke.
func messages(stream io.Reader) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		lines := bufio.NewScanner(stream)
		lines.Buffer(nil, maxEventLine)
		for {
			m, ok := readMessage(lines)
			if !ok {
				break
			}
			if !yield(m, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(message{}, err)
		}
	}
}

// readMessage returns the next whole message; ok is false at the end.
func readMessage(lines *bufio.Scanner) (m message, ok bool) {
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "":
			return m, true
		case "id":
			m.place = value
		case "data":
			m.data = value
		}
	}
	return m, false
}
