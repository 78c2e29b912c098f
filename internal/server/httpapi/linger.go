package httpapi

import (
	"io"
	"net/http"
	"strconv"
	"time"
)

// How long a connection is read on after an answer that did not wait for the end
// of the request's body: until the client has sent nothing for lingerIdle, and
// lingerLimit in all.
const (
	lingerIdle  = 2 * time.Second
	lingerLimit = 10 * time.Second
)

// linger lets an answer reach a client that is still sending its body, such as one
// whose key is wrong or whose guest's disk is full. The answer is sent at once. What
// the client sends after it is read and dropped: closing a socket with unread bytes
// resets the connection, and the client would lose the answer.
func (d *door) linger(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex() // else net/http waits for the body; only recorders of tests cannot
		body := &incoming{ReadCloser: r.Body}
		r.Body = body
		answer := &earlyAnswer{ResponseWriter: w, control: control, body: body}
		next.ServeHTTP(answer, r)
		switch stillSends := answer.finish(); {
		case stillSends && body.expected(r):
			body.drop(control)
		case stillSends:
			_ = control.SetReadDeadline(time.Now()) // net/http would wait for the body before it closes the connection
		}
	})
}

// incoming is a request's body whose reads are noticed.
type incoming struct {
	io.ReadCloser
	begun    bool
	complete bool // it was read to its end
}

func (b *incoming) Read(p []byte) (int, error) {
	b.begun = true
	n, err := b.ReadCloser.Read(p)
	b.complete = b.complete || err == io.EOF
	return n, err
}

// expected reports whether more of the body may come. A client that expects to be
// asked for its body, and was not, sends none.
func (b *incoming) expected(r *http.Request) bool {
	return b.begun || r.Header.Get("Expect") == ""
}

// drop reads what the client still sends.
func (b *incoming) drop(control *http.ResponseController) {
	end := time.Now().Add(lingerLimit)
	buf := make([]byte, 32<<10)
	for time.Now().Before(end) {
		if control.SetReadDeadline(time.Now().Add(lingerIdle)) != nil {
			return
		}
		if _, err := b.ReadCloser.Read(buf); err != nil {
			return
		}
	}
}

// maxHeld is the most that is held of an early answer, in bytes: more than any error.
const maxHeld = 64 << 10

// earlyAnswer holds an answer that comes before the end of the request's body until
// its length is known: with a length, the client has the whole answer although the
// connection stays open. It also announces the end of the connection. Any other
// answer passes.
type earlyAnswer struct {
	http.ResponseWriter
	control *http.ResponseController
	body    *incoming
	status  int // 0 until the answer has begun
	early   bool
	sent    bool // the head of an early answer is out
	held    []byte
}

// Unwrap gives http.ResponseController the writer below.
func (a *earlyAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a *earlyAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status, a.early = status, !a.body.complete
	}
	if !a.early {
		a.ResponseWriter.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (a *earlyAnswer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if !a.early || a.sent {
		return a.ResponseWriter.Write(p)
	}
	a.held = append(a.held, p...)
	if len(a.held) <= maxHeld {
		return len(p), nil
	}
	return len(p), a.send()
}

// FlushError implements what http.ResponseController looks for.
func (a *earlyAnswer) FlushError() error {
	if a.early && !a.sent {
		if err := a.send(); err != nil {
			return err
		}
	}
	return a.control.Flush()
}

// send sends what is held.
func (a *earlyAnswer) send() error {
	a.sent = true
	a.Header().Set("Connection", "close")
	a.ResponseWriter.WriteHeader(a.status)
	_, err := a.ResponseWriter.Write(a.held)
	a.held = nil
	return err
}

// finish sends the rest of an early answer. It reports whether the client may still be
// sending.
func (a *earlyAnswer) finish() bool {
	if a.status == 0 { // net/http answers 200
		a.WriteHeader(http.StatusOK)
	}
	if !a.early {
		return false
	}
	if !a.sent {
		a.Header().Set("Content-Length", strconv.Itoa(len(a.held)))
	}
	return a.FlushError() == nil && !a.body.complete
}
