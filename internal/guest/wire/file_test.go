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

// shelf is a desk with files, which do what the test says.
type shelf struct {
	*desk
	FileHandler // what the test does not say is not asked

	info  FileInfo
	read  func(ctx context.Context, w FileWriter) error
	write func(content io.Reader) error
	items []FileInfo
	watch func(ctx context.Context, report func([]FileChange) error) error
	stat  func(ctx context.Context) error
}

func (s *shelf) StatFile(ctx context.Context, _ PathArgs) (FileInfo, error) {
	return s.info, s.stat(ctx)
}

func (s *shelf) ReadFile(ctx context.Context, _ ReadFileArgs, began func(FileInfo) error, w FileWriter) error {
	if s.read == nil {
		return Refuse(CodeNotFound, "there is none")
	}
	if err := began(s.info); err != nil {
		return err
	}
	return s.read(ctx, w)
}

func (s *shelf) WriteFile(_ context.Context, _ WriteFileArgs, content io.Reader) (FileInfo, error) {
	return s.info, s.write(content)
}

func (s *shelf) ListFiles(_ context.Context, _ PathArgs, began func() error, each func(FileInfo) error) error {
	err := began()
	for _, i := range s.items {
		err = errors.Join(err, each(i))
	}
	return err
}

func (s *shelf) WatchFiles(ctx context.Context, _ WatchFilesArgs, began func() error, report func([]FileChange) error) error {
	if err := began(); err != nil {
		return err
	}
	return s.watch(ctx, report)
}

// shelved connects a client to a shelf. Both have little patience.
func shelved(t *testing.T, s *shelf) *Client {
	t.Helper()
	s.desk = newDesk()
	c, leave := visit(t, s, times{patience: 2 * time.Second, stall: time.Second, beat: 10 * time.Millisecond})
	t.Cleanup(leave)
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

func TestContentPassesWhole(t *testing.T) {
	noise := strings.Repeat("0123456789", 30_000)
	hole := strings.Repeat("\x00", 10*fileFrame)
	for name, text := range map[string]string{
		"nothing": "", "a byte": "x", "noise": noise, "a frame": noise[:fileFrame], "a hole": hole,
		"holes": "x" + hole + noise + hole + "y" + hole + hole[:99],
	} {
		s := &shelf{info: FileInfo{Size: int64(len(text))}, read: sends(text)}
		var taken []byte
		s.write = func(content io.Reader) (err error) {
			taken, err = io.ReadAll(content)
			return err
		}
		c := shelved(t, s)
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
				t.Errorf("%s: %d of %d bytes came, %v", name, len(got), len(text), err)
			}
			if err := content.Close(); err != nil {
				t.Error(err)
			}
		}
		if info, err := c.WriteFile(t.Context(), WriteFileArgs{}, strings.NewReader(text)); err != nil || !reflect.DeepEqual(info, s.info) || string(taken) != text {
			t.Errorf("%s: %d of %d bytes went, %v", name, len(taken), len(text), err)
		}
	}
}

// TestContentThatIsNotWholeEndsWithAnError has agents that fail, die and lie.
func TestContentThatIsNotWholeEndsWithAnError(t *testing.T) {
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
		client := shelved(t, &shelf{info: FileInfo{Size: 100_000}, read: c.read})
		_, content, err := client.ReadFile(t.Context(), ReadFileArgs{Length: -1})
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, content)
		var refused *RemoteError
		if errors.As(c.want, &refused) {
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

func TestAgentThatDiesLeavesNoWholeContent(t *testing.T) {
	c := shelved(t, &shelf{info: FileInfo{Size: UnknownSize}, read: func(ctx context.Context, w FileWriter) error {
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
	c := shelved(t, &shelf{write: func(content io.Reader) error {
		_, _ = io.ReadFull(content, make([]byte, 1000))
		return Refuse(CodeDiskFull, "it is")
	}})
	_, err := c.WriteFile(t.Context(), WriteFileArgs{}, endless("x"))
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeDiskFull {
		t.Errorf("got %v", err)
	}
}

func TestPartTakenForTheWholeIsAnError(t *testing.T) {
	c := shelved(t, &shelf{write: func(content io.Reader) error {
		_, err := io.ReadFull(content, make([]byte, 1000))
		return err
	}})
	if _, err := c.WriteFile(t.Context(), WriteFileArgs{}, endless("x")); !errors.Is(err, errFileFrame) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsOfTheCallersComeBack(t *testing.T) {
	own := errors.New("the caller's own")
	cut := make(chan error, 1)
	s := &shelf{
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
	c, ctx := shelved(t, s), t.Context()
	_, err := c.WriteFile(ctx, WriteFileArgs{}, io.MultiReader(strings.NewReader("begun"), iotest.ErrReader(own)))
	requireLocal(t, err, own)
	if err := <-cut; !errors.Is(err, ErrCut) {
		t.Errorf("the agent took it for whole: %v", err)
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

// TestContentThatFailsAtOnceIsGivenUpAtOnce repeats what is a matter of which
// goroutine is faster.
func TestContentThatFailsAtOnceIsGivenUpAtOnce(t *testing.T) {
	own := errors.New("the caller's own")
	s := &shelf{desk: newDesk(), write: func(content io.Reader) error {
		_, err := io.ReadAll(content)
		return err
	}}
	c, leave := visit(t, s, times{patience: time.Minute, stall: time.Minute, beat: time.Minute})
	defer leave()
	began := time.Now()
	for range 100 {
		_, err := c.WriteFile(t.Context(), WriteFileArgs{}, iotest.ErrReader(own))
		requireLocal(t, err, own)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestHostThatLeavesEndsTheWork(t *testing.T) {
	ended := make(chan error, 2)
	c := shelved(t, &shelf{
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
		t.Error("the read ended without a reason")
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.WatchFiles(ctx, WatchFilesArgs{}, cancel, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("its work ended with %v", err)
	}
}

// TestPatienceIsWithTheSilent has an agent that is at work for longer than the
// host waits, and one that says nothing.
func TestPatienceIsWithTheSilent(t *testing.T) {
	c := shelved(t, &shelf{stat: func(ctx context.Context) error {
		select {
		case <-time.After(300 * time.Millisecond):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	c.times.patience = 100 * time.Millisecond
	if _, err := c.StatFile(t.Context(), PathArgs{}); err != nil {
		t.Errorf("an agent at work: %v", err)
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
	c.times.patience = 50 * time.Millisecond
	if _, err := c.StatFile(t.Context(), PathArgs{}); !errors.Is(err, yamux.ErrTimeout) {
		t.Errorf("a silent agent: %v", err)
	}
	if err := errors.Join(c.Close(), <-silent); err != nil {
		t.Error(err)
	}
}

func TestAgentWithoutFilesSaysSo(t *testing.T) {
	c, _ := pair(t, newDesk())
	_, err := c.StatFile(t.Context(), PathArgs{})
	var refused *RemoteError
	if !errors.As(err, &refused) || refused.Code != CodeUnknownOp {
		t.Errorf("got %v", err)
	}
}

// FuzzFileContent reads frames that a guest may send.
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
			t.Errorf("%d bytes are whole, of %d", n, limit)
		}
	})
}
