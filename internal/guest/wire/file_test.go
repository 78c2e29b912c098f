package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/yamux"
)

// fakeFiles is a fakeHandler with files, which the test controls.
type fakeFiles struct {
	*fakeHandler
	FileHandler // nil: tests call no other operations

	info  FileInfo
	read  func(ctx context.Context, w FileWriter) error
	write func(content io.Reader) error
	items []FileInfo
	watch func(ctx context.Context, report func([]FileChange) error) error
	stat  func(ctx context.Context) error
}

func (s *fakeFiles) StatFile(ctx context.Context, _ PathArgs) (FileInfo, error) {
	return s.info, s.stat(ctx)
}

func (s *fakeFiles) ReadFile(ctx context.Context, _ ReadFileArgs, began func(FileInfo) error, w FileWriter) error {
	if s.read == nil {
		return Refuse(CodeNotFound, "there is none")
	}
	if err := began(s.info); err != nil {
		return err
	}
	return s.read(ctx, w)
}

func (s *fakeFiles) WriteFile(_ context.Context, _ WriteFileArgs, content io.Reader) (FileInfo, error) {
	return s.info, s.write(content)
}

func (s *fakeFiles) ListFiles(_ context.Context, _ PathArgs, began func() error, each func(FileInfo) error) error {
	err := began()
	for _, i := range s.items {
		err = errors.Join(err, each(i))
	}
	return err
}

func (s *fakeFiles) WatchFiles(ctx context.Context, _ WatchFilesArgs, began func() error, report func([]FileChange) error) error {
	if err := began(); err != nil {
		return err
	}
	return s.watch(ctx, report)
}

// connectFiles connects a client to fake files, with short timeouts.
func connectFiles(t *testing.T, s *fakeFiles) *Client {
	t.Helper()
	s.fakeHandler = newFakeHandler()
	c, disconnect := connect(t, s, times{answer: 2 * time.Second, stall: time.Second, busy: 10 * time.Millisecond})
	t.Cleanup(disconnect)
	return c
}

func sends(parts ...string) func(context.Context, FileWriter) error {
	return func(_ context.Context, w FileWriter) error {
		for _, p := range parts {
			if _, err := io.WriteString(w, p); err != nil {
				return err
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestContentArrives(t *testing.T) {
	noise := strings.Repeat("0123456789", 30_000)
	hole := strings.Repeat("\x00", 10*fileFrame)
	for name, text := range map[string]string{
		"nothing": "", "a byte": "x", "noise": noise, "a frame": noise[:fileFrame], "a hole": hole,
		"holes": "x" + hole + noise + hole + "y" + hole + hole[:99],
	} {
		s := &fakeFiles{info: FileInfo{Size: int64(len(text))}, read: sends(text)}
		var written []byte
		s.write = func(content io.Reader) (err error) {
			written, err = io.ReadAll(content)
			return err
		}
		c := connectFiles(t, s)
		for _, read := range []func(*FileContent) ([]byte, error){
			func(f *FileContent) ([]byte, error) { return io.ReadAll(f) },
			func(f *FileContent) ([]byte, error) { return io.ReadAll(iotest.OneByteReader(io.LimitReader(f, 1000))) },
			func(f *FileContent) ([]byte, error) {
				var out bytes.Buffer
				_, err := f.WriteTo(&out)
				return out.Bytes(), err
			},
		} {
			_, content, err := c.ReadFile(t.Context(), ReadFileArgs{Length: -1})
			if err != nil {
				t.Fatal(err)
			}
			got, err := read(content)
			if err != nil || !strings.HasPrefix(text, string(got)) || len(got) < min(1000, len(text)) {
				t.Errorf("%s: %d of %d bytes read, %v", name, len(got), len(text), err)
			}
			if err := content.Close(); err != nil {
				t.Error(err)
			}
		}
		if info, err := c.WriteFile(t.Context(), WriteFileArgs{}, strings.NewReader(text)); err != nil || !reflect.DeepEqual(info, s.info) || string(written) != text {
			t.Errorf("%s: %d of %d bytes written, %v", name, len(written), len(text), err)
		}
	}
}

func TestIncompleteContentEndsWithAnError(t *testing.T) {
	text := strings.Repeat("x", 100_000)
	for name, c := range map[string]struct {
		read func(context.Context, FileWriter) error
		want error
	}{
		"it fails": {func(ctx context.Context, w FileWriter) error {
			return errors.Join(sends(text[:50_000])(ctx, w), Refuse(CodeChanged, "it did"))
		}, Refuse(CodeChanged, "it did")},
		"it sends too little": {sends(text[:99_999]), ErrCut},
		"it sends too much":   {sends(text, "x"), errTooMuch},
		"it sends holes":      {sends(text[:99_999], strings.Repeat("\x00", 1<<20)), errTooMuch},
	} {
		client := connectFiles(t, &fakeFiles{info: FileInfo{Size: 100_000}, read: c.read})
		_, content, err := client.ReadFile(t.Context(), ReadFileArgs{Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, content)
		if refused, ok := errors.AsType[*RemoteError](c.want); ok {
			var got *RemoteError
			if !errors.As(err, &got) || *got != *refused {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, c.want) {
			t.Errorf("%s: %d bytes, %v, want %v", name, n, err, c.want)
		}
		_ = content.Close()
	}
}

func TestContentOfALostSessionIsIncomplete(t *testing.T) {
	c := connectFiles(t, &fakeFiles{info: FileInfo{Size: UnknownSize}, read: func(ctx context.Context, w FileWriter) error {
		_ = sends("half")(ctx, w)
		<-ctx.Done()
		return ctx.Err()
	}})
	_, content, err := c.ReadFile(t.Context(), ReadFileArgs{Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(content, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	_ = c.session.Close()
	if n, err := content.Read(make([]byte, 10)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", n, err)
	}
	_ = content.Close()
}

func TestRefusalEndsAnUploadEarly(t *testing.T) {
	c := connectFiles(t, &fakeFiles{write: func(content io.Reader) error {
		_, _ = io.ReadFull(content, make([]byte, 1000))
		return Refuse(CodeDiskFull, "it is")
	}})
	_, err := c.WriteFile(t.Context(), WriteFileArgs{}, endless("x"))
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeDiskFull {
		t.Errorf("got %v", err)
	}
}

func TestAgentThatAcceptsAnIncompleteContentIsAnError(t *testing.T) {
	c := connectFiles(t, &fakeFiles{write: func(content io.Reader) error {
		_, err := io.ReadFull(content, make([]byte, 1000))
		return err
	}})
	if _, err := c.WriteFile(t.Context(), WriteFileArgs{}, endless("x")); !errors.Is(err, errFileFrame) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsOfTheCallerAreReturned(t *testing.T) {
	own := errors.New("the caller's own")
	cut := make(chan error, 1)
	s := &fakeFiles{
		info: FileInfo{Size: 4}, read: sends("text"), items: []FileInfo{{Kind: KindFile}},
		write: func(content io.Reader) error {
			_, err := io.ReadAll(content)
			cut <- err
			return err
		},
		watch: func(ctx context.Context, report func([]FileChange) error) error {
			_ = report([]FileChange{{Kind: ChangeCreate}, {Kind: ChangeWrite}})
			<-ctx.Done()
			return ctx.Err()
		},
	}
	c, ctx := connectFiles(t, s), t.Context()
	_, err := c.WriteFile(ctx, WriteFileArgs{}, io.MultiReader(strings.NewReader("begun"), iotest.ErrReader(own)))
	requireLocal(t, err, own)
	if err := <-cut; !errors.Is(err, ErrCut) {
		t.Errorf("the agent saw a complete content: %v", err)
	}
	requireLocal(t, c.ListFiles(ctx, PathArgs{}, func(FileInfo) error { return own }), own)
	requireLocal(t, c.WatchFiles(ctx, WatchFilesArgs{}, func() {}, func(FileChange) error { return own }), own)
	_, content, err := c.ReadFile(ctx, ReadFileArgs{Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	_, err = content.WriteTo(writerFunc(func([]byte) (int, error) { return 0, own }))
	requireLocal(t, err, own)
	_ = content.Close()
}

func requireLocal(t *testing.T, err, own error) {
	t.Helper()
	var local *LocalError
	if !errors.As(err, &local) || !errors.Is(err, own) {
		t.Errorf("got %v", err)
	}
}

// TestContentThatFailsAtOnceIsAborted repeats the upload, because the result depends on
// which goroutine is faster.
func TestContentThatFailsAtOnceIsAborted(t *testing.T) {
	own := errors.New("the caller's own")
	s := &fakeFiles{fakeHandler: newFakeHandler(), write: func(content io.Reader) error {
		_, err := io.ReadAll(content)
		return err
	}}
	c, disconnect := connect(t, s, times{answer: time.Minute, stall: time.Minute, busy: time.Minute})
	defer disconnect()
	began := time.Now()
	for range 100 {
		_, err := c.WriteFile(t.Context(), WriteFileArgs{}, iotest.ErrReader(own))
		requireLocal(t, err, own)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestCloseByTheHostEndsTheOperation(t *testing.T) {
	ended := make(chan error, 2)
	c := connectFiles(t, &fakeFiles{
		info: FileInfo{Size: UnknownSize},
		read: func(_ context.Context, w FileWriter) error {
			_, err := w.ReadFrom(endless("x"))
			ended <- err
			return err
		},
		watch: func(ctx context.Context, _ func([]FileChange) error) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
	})
	_, content, err := c.ReadFile(t.Context(), ReadFileArgs{Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	_ = content.Close()
	if err := <-ended; err == nil {
		t.Error("the read ended without an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.WatchFiles(ctx, WatchFilesArgs{}, cancel, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("its operation ended with %v", err)
	}
}

// TestOnlyASilentAgentTimesOut has an agent that works for longer than the timeout,
// and one that sends nothing.
func TestOnlyASilentAgentTimesOut(t *testing.T) {
	c := connectFiles(t, &fakeFiles{stat: func(ctx context.Context) error {
		select {
		case <-time.After(300 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	c.times.answer = 100 * time.Millisecond
	if _, err := c.StatFile(t.Context(), PathArgs{}); err != nil {
		t.Errorf("an agent that works: %v", err)
	}
	host, guest := net.Pipe()
	silent := make(chan error, 1)
	go func() {
		_, rest, err := answer(guest)
		if err == nil {
			_, err = io.Copy(io.Discard, rest)
		}
		silent <- err
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	c.times.answer = 50 * time.Millisecond
	if _, err := c.StatFile(t.Context(), PathArgs{}); !errors.Is(err, yamux.ErrTimeout) {
		t.Errorf("a silent agent: %v", err)
	}
	if err := errors.Join(c.Close(), <-silent); err != nil {
		t.Error(err)
	}
}

func TestFilesAreUnknownToAnOldAgent(t *testing.T) {
	c, _ := connectTo(t, newFakeHandler())
	_, err := c.StatFile(t.Context(), PathArgs{})
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeUnknownOp {
		t.Errorf("got %v", err)
	}
}

// FuzzFileContent has a guest that sends any bytes as content.
func FuzzFileContent(f *testing.F) {
	zeros := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	add := func(limit int64, frames ...[]byte) { f.Add(bytes.Join(frames, nil), limit) }
	one := func(kind byte, payload []byte) []byte {
		framed, err := appendFrame(nil, kind, payload)
		if err != nil {
			f.Fatal(err)
		}
		return framed
	}
	add(-1, one(fileData, []byte("data")), one(fileBusy, nil), one(fileZeros, zeros(100)), one(fileEnd, nil))
	add(4, one(fileZeros, zeros(1<<63)), one(fileEnd, nil))
	add(3, one(fileData, []byte("data")), one(fileError, []byte(`{"code":"x"}`)))
	f.Fuzz(func(t *testing.T, raw []byte, limit int64) {
		limit = min(limit, 1<<20)
		frames := frameReader{r: bytes.NewReader(raw)}
		r := &fileReceiver{next: frames.next, limit: limit}
		n, err := io.Copy(io.Discard, io.LimitReader(struct{ io.Reader }{r}, 1<<22))
		if limit >= 0 && n > limit {
			t.Errorf("%d bytes of %d", n, limit)
		}
		if err == nil && limit >= 0 && n != limit {
			t.Errorf("%d bytes are accepted as complete, of %d", n, limit)
		}
	})
}
