package httpapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// timedWriter notes the deadlines it is given.
type timedWriter struct {
	*httptest.ResponseRecorder
	deadlines []time.Time
}

func (w *timedWriter) SetReadDeadline(at time.Time) error {
	w.deadlines = append(w.deadlines, at)
	return nil
}

func TestUploadsAreBoundInTimePerPiece(t *testing.T) {
	w := &timedWriter{ResponseRecorder: httptest.NewRecorder()}
	u := &upload{ReadCloser: io.NopCloser(iotest.OneByteReader(strings.NewReader("abc"))), control: http.NewResponseController(w)}
	before := time.Now()
	if got, err := io.ReadAll(u); err != nil || string(got) != "abc" {
		t.Fatalf("%q, %v", got, err)
	}
	last := len(w.deadlines) - 1
	if last < 4 || !w.deadlines[last].IsZero() {
		t.Fatalf("after the end a deadline is left: %v", w.deadlines)
	}
	for _, at := range w.deadlines[:last] {
		if at.Before(before.Add(bodyTimeout)) || at.After(time.Now().Add(bodyTimeout)) {
			t.Errorf("a piece may take until %s", at)
		}
	}
	for cause, code := range map[error]string{os.ErrDeadlineExceeded: "body_too_slow", io.ErrUnexpectedEOF: "body_cut_short"} {
		u := &upload{ReadCloser: io.NopCloser(iotest.ErrReader(cause)), control: http.NewResponseController(w)}
		if _, err := u.Read(make([]byte, 1)); !errs.HasCode(err, code) || errors.Is(err, io.EOF) {
			t.Errorf("%v becomes %v", cause, err)
		}
	}
}
