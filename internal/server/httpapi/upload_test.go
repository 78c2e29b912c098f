package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// timedWriter notes the deadline it was given last.
type timedWriter struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *timedWriter) SetReadDeadline(at time.Time) error {
	w.deadline = at
	return nil
}

// slowClient sends pieces of a size, each after a time, until a deadline.
type slowClient struct {
	every time.Duration
	piece int
	until *time.Time
	sent  int
}

func (c *slowClient) Read(p []byte) (int, error) {
	<-time.After(c.every)
	if time.Now().After(*c.until) {
		return 0, os.ErrDeadlineExceeded
	}
	n := min(len(p), c.piece)
	c.sent += n
	return n, nil
}

func (*slowClient) Close() error { return nil }

func uploadOf(body io.Reader) (*upload, *timedWriter) {
	w := &timedWriter{ResponseRecorder: httptest.NewRecorder()}
	return &upload{ReadCloser: io.NopCloser(body), control: http.NewResponseController(w), left: bodyTimeout}, w
}

// A client cannot hold an upload by a byte now and then, but one that is slow may go on.
func TestAnUploadMustMakeProgress(t *testing.T) {
	for name, c := range map[string]struct {
		client slowClient
		size   int64
		ends   bool
	}{
		"a byte each second":      {slowClient{every: time.Second, piece: 1}, 1000, true},
		"a byte each 29 seconds":  {slowClient{every: 29 * time.Second, piece: 1}, 1000, true},
		"256 bytes each second":   {slowClient{every: time.Second, piece: 256}, 1 << 20, false},
		"much each 29 seconds":    {slowClient{every: 29 * time.Second, piece: 32 << 10}, 1 << 20, false},
		"nothing for 31 seconds":  {slowClient{every: 31 * time.Second, piece: 32 << 10}, 1 << 20, true},
		"the last few bytes late": {slowClient{every: 10 * time.Second, piece: 1}, 2, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := c.client
				u, w := uploadOf(&client)
				client.until = &w.deadline
				_, err := io.Copy(io.Discard, io.LimitReader(u, c.size))
				if errs.HasCode(err, "body_too_slow") != c.ends || (err != nil) != c.ends {
					t.Errorf("after %d bytes: %v", client.sent, err)
				}
			})
		})
	}
}

// Time in which the guest does not take more is not the client's.
func TestAnUploadMayWaitForTheGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := slowClient{every: time.Second, piece: 1}
		u, w := uploadOf(&client)
		client.until = &w.deadline
		for range 20 {
			if _, err := u.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Hour)
		}
	})
}

func TestUploadErrorsAreForTheClient(t *testing.T) {
	u, w := uploadOf(strings.NewReader("abc"))
	if got, err := io.ReadAll(u); err != nil || string(got) != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	if !w.deadline.IsZero() {
		t.Errorf("after the end a deadline is left: %v", w.deadline)
	}
	for cause, code := range map[error]string{os.ErrDeadlineExceeded: "body_too_slow", io.ErrUnexpectedEOF: "body_cut_short"} {
		u, _ := uploadOf(iotest.ErrReader(cause))
		u.left = 0
		if _, err := u.Read(make([]byte, 1)); !errs.HasCode(err, code) || errors.Is(err, io.EOF) {
			t.Errorf("%v becomes %v", cause, err)
		}
	}
	u, _ = uploadOf(iotest.ErrReader(os.ErrDeadlineExceeded)) // before its time
	if _, err := u.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that the end of the request interrupts: %v", err)
	}
}
