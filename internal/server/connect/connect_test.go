package connect_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hatchvm/hatch/internal/server/connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type word struct {
	Text string `json:"text"`
}

// echo answers with the text, or with the error that it names.
func echo(ctx context.Context, req *word) (any, error) {
	switch req.Text {
	case "secret":
		return nil, errors.New("a secret of the host")
	case "wait":
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case "missing":
		return nil, connect.Errorf(connect.NotFound, "process with pid %d not found", 9)
	}
	return req, nil
}

func unary(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	connect.Unary(w, r, echo)
	return w
}

func request(kind, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", kind)
	for pair := range slices.Chunk(headers, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	return r
}

func TestUnary(t *testing.T) {
	long := `{"text":"` + strings.Repeat("x", connect.MaxUnary) + `"}`
	for name, c := range map[string]struct {
		request *http.Request
		status  int
		body    string
	}{
		"a message":           {request("application/json", `{"text":"a<b"}`), 200, `{"text":"a\u003cb"}`},
		"nothing":             {request("application/json", ""), 200, `{"text":""}`},
		"null":                {request("application/json", "null"), 200, `{"text":""}`},
		"unknown fields":      {request("application/json", `{"x":1,"text":null}`), 200, `{"text":""}`},
		"a charset":           {request("application/json; charset=utf-8", "{}"), 200, `{"text":""}`},
		"identity":            {request("application/json", "{}", "Content-Encoding", "identity", "Connect-Protocol-Version", "1"), 200, `{"text":""}`},
		"an error":            {request("application/json", `{"text":"missing"}`), 404, `{"code":"not_found","message":"process with pid 9 not found"}`},
		"an error of ours":    {request("application/json", `{"text":"secret"}`), 500, `{"code":"internal","message":"an internal error; hatchd's log has the details"}`},
		"a timeout":           {request("application/json", `{"text":"wait"}`, "Connect-Timeout-Ms", "8"), 504, `{"code":"deadline_exceeded"`},
		"a wrong timeout":     {request("application/json", "{}", "Connect-Timeout-Ms", "-1"), 400, `{"code":"invalid_argument"`},
		"a long timeout":      {request("application/json", "{}", "Connect-Timeout-Ms", "12345678901"), 400, `{"code":"invalid_argument"`},
		"no JSON":             {request("application/json", "{"), 400, `{"code":"invalid_argument"`},
		"a wrong type":        {request("application/json", `{"text":1}`), 400, `{"code":"invalid_argument","message":"the message's field \"text\" has the wrong type: it is a number"}`},
		"too much":            {request("application/json", long), 429, `{"code":"resource_exhausted"`},
		"the binary codec":    {request("application/proto", ""), 415, `{"code":"unimplemented","message":"only the JSON codec is supported: send this call as application/json"}`},
		"the codec of a page": {request("", ""), 415, `{"code":"unimplemented"`},
		"compression":         {request("application/json", "", "Content-Encoding", "gzip"), 501, `{"code":"unimplemented"`},
		"another method":      {httptest.NewRequest(http.MethodGet, "/", nil), 405, `{"code":"unimplemented"`},
	} {
		w := unary(c.request)
		if w.Code != c.status || !strings.HasPrefix(w.Body.String(), c.body) || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: status %d, %s, %.200s", name, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
}

// frame returns a message as it is sent in a stream.
func frame(flags byte, text string) string {
	return string(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(text)))) + text
}

const streamed = "application/connect+json"

var alive = map[string]any{"event": map[string]any{"keepalive": map[string]any{}}}

// stream serves a stream in memory.
func stream(r *http.Request, do func(ctx context.Context, req *word, send connect.Send) error) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	connect.ServerStream(w, r, alive, do)
	return w
}

func TestServerStream(t *testing.T) {
	say := func(_ context.Context, req *word, send connect.Send) error { return errors.Join(send(req), send(req)) }
	hi := frame(0, `{"text":"hi"}`)
	for name, c := range map[string]struct {
		request *http.Request
		do      func(context.Context, *word, connect.Send) error
		want    string
	}{
		"messages":         {request(streamed, frame(0, "{\n \"text\": \"hi\"}")), say, hi + hi + "\x02\x00\x00\x00\x02{}"},
		"an error after":   {request(streamed, hi), func(_ context.Context, _ *word, send connect.Send) error { _ = send(word{}); return os.ErrExist }, frame(0, `{"text":""}`) + frame(2, `{"error":{"code":"internal","message":"an internal error; hatchd's log has the details"}}`)},
		"no message":       {request(streamed, ""), say, frame(2, `{"error":{"code":"invalid_argument","message":"the request has no message"}}`)},
		"a cut message":    {request(streamed, hi[:9]), say, frame(2, `{"error":{"code":"invalid_argument","message":"the request ends within a message"}}`)},
		"a compressed one": {request(streamed, frame(1, "{}")), say, frame(2, `{"error":{"code":"unimplemented","message":"compressed messages are not supported"}}`)},
		"odd flags":        {request(streamed, frame(8, "{}")), say, frame(2, `{"error":{"code":"invalid_argument","message":"a message has the unknown flags 0x08"}}`)},
		"a huge one":       {request(streamed, "\x00\xff\xff\xff\xff{}"), say, frame(2, `{"error":{"code":"resource_exhausted","message":"the message is larger than the limit of 16777216 bytes"}}`)},
	} {
		w := stream(c.request, c.do)
		if w.Code != 200 || w.Header().Get("Content-Type") != streamed || w.Body.String() != c.want {
			t.Errorf("%s: status %d, %s, %q", name, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
	if w := stream(request(streamed, hi, "Connect-Content-Encoding", "gzip"), say); w.Code != 501 {
		t.Errorf("a compressed stream has status %d", w.Code)
	}
	if w := stream(request("application/connect+proto", hi), say); w.Code != 415 || w.Header().Get("Accept-Post") != streamed {
		t.Errorf("the binary codec has status %d", w.Code)
	}
}

// TestSilenceAndDeadline has a silent call, whose client wants a keepalive each two
// seconds, and an end after five.
func TestSilenceAndDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := stream(request(streamed, frame(0, "{}"), "Keepalive-Ping-Interval", "2", "Connect-Timeout-Ms", "5000"),
			func(ctx context.Context, _ *word, send connect.Send) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
		ping := frame(0, `{"event":{"keepalive":{}}}`)
		want := ping + ping + frame(2, `{"error":{"code":"deadline_exceeded","message":"the time that the caller gave has passed"}}`)
		if w.Body.String() != want || time.Since(began) != 4950*time.Millisecond {
			t.Errorf("after %v: %q", time.Since(began), w.Body)
		}
		if ping[:5] != "\x00\x00\x00\x00\x1a" {
			t.Errorf("the keepalive is %q", ping)
		}
	})
}

// stuck is an answer that no client reads: a write ends with its deadline.
type stuck struct {
	http.ResponseWriter
	deadline time.Time
	writes   int
}

func (s *stuck) SetWriteDeadline(t time.Time) error { s.deadline = t; return nil }
func (s *stuck) Flush()                             {}

func (s *stuck) Write([]byte) (int, error) {
	s.writes++
	time.Sleep(time.Until(s.deadline)) //nolint:forbidigo // in the time of synctest
	return 0, os.ErrDeadlineExceeded
}

// TestAClientThatReadsNothingIsLeft requires the end of the call's context.
func TestAClientThatReadsNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stuck{ResponseWriter: httptest.NewRecorder()}
		began := time.Now()
		connect.ServerStream(w, request(streamed, frame(0, "{}")), alive, func(ctx context.Context, _ *word, send connect.Send) error {
			for range 2 {
				if send(word{}) == nil {
					t.Error("a message was sent")
				}
			}
			<-ctx.Done()
			return context.Cause(ctx)
		})
		if took := time.Since(began); took > 20*time.Second || w.writes != 1 {
			t.Errorf("it took %v and %d writes", took, w.writes)
		}
	})
}

// readFrames reads the frames of an answer up to its end.
func readFrames(t *testing.T, r io.Reader) (frames []string) {
	t.Helper()
	for {
		var prefix [5]byte
		if _, err := io.ReadFull(r, prefix[:]); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			return frames
		}
		text := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
		if _, err := io.ReadFull(r, text); err != nil {
			t.Error(err)
			return frames
		}
		frames = append(frames, string(prefix[:1])+string(text))
	}
}

// TestOverHTTP streams both ways over HTTP/1.1 and HTTP/2, and has a client that leaves.
func TestOverHTTP(t *testing.T) {
	left := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/server", func(w http.ResponseWriter, r *http.Request) {
		connect.ServerStream(w, r, alive, func(ctx context.Context, req *word, send connect.Send) error {
			if err := send(req); err != nil {
				return err
			}
			<-ctx.Done()
			left <- context.Cause(ctx)
			return nil
		})
	})
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) {
		connect.ClientStream(w, r, func(_ context.Context, next func() (*word, error)) (any, error) {
			all := ""
			for {
				req, err := next()
				if errors.Is(err, io.EOF) {
					return word{all}, nil
				}
				if err != nil {
					return nil, err
				}
				all += req.Text
			}
		})
	})
	for _, version := range []int{1, 2} {
		s := httptest.NewUnstartedServer(mux)
		s.EnableHTTP2 = version == 2
		s.StartTLS()
		post := func(ctx context.Context, path string, body io.Reader) *http.Response {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+path, body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", streamed)
			res, err := s.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if res.ProtoMajor != version {
				t.Errorf("HTTP/%d is spoken", res.ProtoMajor)
			}
			return res
		}
		chunked := io.MultiReader(strings.NewReader(frame(0, `{"text":"a"}`)), strings.NewReader(frame(0, `{"text":"b"}`)))
		res := post(t.Context(), "/client", chunked)
		if got := readFrames(t, res.Body); !slices.Equal(got, []string{"\x00" + `{"text":"ab"}`, "\x02{}"}) {
			t.Errorf("HTTP/%d: the client's stream was answered with %q", version, got)
		}
		_ = res.Body.Close()
		res = post(t.Context(), "/client", strings.NewReader(frame(0, "[")))
		if got := readFrames(t, res.Body); len(got) != 1 || !strings.Contains(got[0], "invalid_argument") {
			t.Errorf("HTTP/%d: an invalid message was answered with %q", version, got)
		}
		_ = res.Body.Close()

		ctx, leave := context.WithCancel(t.Context())
		res = post(ctx, "/server", strings.NewReader(frame(0, `{"text":"a"}`)))
		first := make([]byte, len(frame(0, `{"text":"a"}`)))
		if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != frame(0, `{"text":"a"}`) {
			t.Errorf("HTTP/%d: %q, %v", version, first, err)
		}
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("HTTP/%d: the call ended with %v", version, err)
		}
		_ = res.Body.Close()
		s.Close()
	}
}

// TestServerThatEnds has a request whose context ends while the client waits.
func TestServerThatEnds(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	w := stream(request(streamed, frame(0, "{}")).WithContext(ctx), func(ctx context.Context, _ *word, _ connect.Send) error {
		end()
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if want := frame(2, `{"error":{"code":"unavailable","message":"the server ends this call"}}`); w.Body.String() != want {
		t.Errorf("%q", w.Body)
	}
}

// TestPanicEndsTheStream must leave no goroutine behind.
func TestPanicEndsTheStream(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("the panic was lost")
		}
	}()
	stream(request(streamed, frame(0, "{}")), func(context.Context, *word, connect.Send) error { panic("x") })
}

// FuzzClientStream reads any bytes as a stream. Each message must have been in it.
func FuzzClientStream(f *testing.F) {
	for _, seed := range []string{"", frame(0, "{}"), frame(0, `{"text":"a"}`) + frame(0, "null"), frame(2, "{}"), "\x00\x00", "\x00\x7f\xff\xff\xff{"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		messages := 0
		w := httptest.NewRecorder()
		connect.ClientStream(w, request(streamed, string(body)), func(_ context.Context, next func() (*word, error)) (any, error) {
			for {
				_, err := next()
				if errors.Is(err, io.EOF) {
					return messages, nil
				}
				if err != nil {
					return nil, err
				}
				messages++
			}
		})
		frames := readFrames(t, w.Body)
		if last := frames[len(frames)-1]; last[0] != 2 || !json.Valid([]byte(last[1:])) || messages*5 > len(body) {
			t.Errorf("%d messages, answered with %q", messages, frames)
		}
	})
}
