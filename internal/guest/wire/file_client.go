package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// fileStream is a request about files.
type fileStream struct {
	*stream
	frames frameReader
	cut    atomic.Bool // given up by this end
}

// beginFile sends a request and waits until the agent knows the operation.
func (c *Client) beginFile(ctx context.Context, op Op, args any) (*fileStream, error) {
	s, err := c.begin(ctx, op, args)
	if err != nil {
		return nil, err
	}
	if err := s.firstReply(nil); err != nil {
		_ = s.Close()
		return nil, s.fault(err)
	}
	return &fileStream{stream: s, frames: frameReader{r: s}}, nil
}

// openFile is beginFile for an operation that says when it begins, and puts
// what comes with that into result.
func (c *Client) openFile(ctx context.Context, op Op, args, result any) (*fileStream, error) {
	s, err := c.beginFile(ctx, op, args)
	if err != nil {
		return nil, err
	}
	if err := s.ending(fileBegan, result); err != nil {
		_ = s.Close()
		return nil, s.fault(err)
	}
	return s, nil
}

// next returns the next frame, which must come within wait; 0 means any time.
func (s *fileStream) next(wait time.Duration) (kind byte, payload []byte, err error) {
	if err := s.waitFor(wait); err != nil {
		return 0, nil, err
	}
	kind, payload, err = s.frames.next()
	if errors.Is(err, io.EOF) {
		err = ErrCut
	}
	return kind, payload, err
}

// waitFor bounds what is read next. That nothing is waited for any more may
// have been said just now.
func (s *fileStream) waitFor(wait time.Duration) error {
	var deadline time.Time
	if wait > 0 {
		deadline = time.Now().Add(wait)
	}
	_ = s.SetReadDeadline(deadline)
	if s.cut.Load() {
		return ErrCut
	}
	return s.cause()
}

// giveUp makes every wait of the stream's end.
func (s *fileStream) giveUp() {
	s.cut.Store(true)
	_ = s.SetDeadline(time.Now())
}

// ending waits for the frame that ends the waiting, and decodes it.
func (s *fileStream) ending(wanted byte, result any) error {
	for {
		kind, payload, err := s.next(s.patience)
		if err != nil {
			return err
		}
		if kind != fileBusy {
			return decodeFrame(wanted, kind, payload, result)
		}
	}
}

// StatFile asks for the file itself, be it a link.
func (c *Client) StatFile(ctx context.Context, args PathArgs) (FileInfo, error) {
	var info FileInfo
	err := c.fileCall(ctx, OpStatFile, args, &info)
	return info, err
}

// MakeDirectory makes a directory.
func (c *Client) MakeDirectory(ctx context.Context, args MakeDirectoryArgs) (FileInfo, error) {
	var info FileInfo
	err := c.fileCall(ctx, OpMakeDirectory, args, &info)
	return info, err
}

// RenameFile renames a file.
func (c *Client) RenameFile(ctx context.Context, args RenameFileArgs) (FileInfo, error) {
	var info FileInfo
	err := c.fileCall(ctx, OpRenameFile, args, &info)
	return info, err
}

// RemoveFile removes a file or a tree.
func (c *Client) RemoveFile(ctx context.Context, args RemoveFileArgs) error {
	return c.fileCall(ctx, OpRemoveFile, args, nil)
}

// fileCall is an operation without a content.
func (c *Client) fileCall(ctx context.Context, op Op, args, result any) error {
	s, err := c.beginFile(ctx, op, args)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return s.fault(s.ending(fileEnd, result))
}

// ListFiles calls each for the entries of a directory, whose Path is the name.
// An error of each is returned as a [*LocalError].
func (c *Client) ListFiles(ctx context.Context, args PathArgs, each func(FileInfo) error) error {
	s, err := c.openFile(ctx, OpListFiles, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return s.fault(eachItem(s, s.patience, each))
}

// WatchFiles calls began, and then report for each change, until ctx is done or
// report fails, which is returned as a [*LocalError].
func (c *Client) WatchFiles(ctx context.Context, args WatchFilesArgs, began func(), report func(FileChange) error) error {
	s, err := c.openFile(ctx, OpWatchFiles, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	began()
	return s.fault(eachItem(s, 0, report))
}

// eachItem calls each for the items up to the end.
func eachItem[T any](s *fileStream, wait time.Duration, each func(T) error) error {
	for {
		kind, payload, err := s.next(wait)
		switch {
		case err != nil:
			return err
		case kind == fileBusy:
			continue
		case kind != fileItem:
			return decodeFrame(fileEnd, kind, payload, nil)
		}
		var item T
		if err := json.Unmarshal(payload, &item); err != nil {
			return fmt.Errorf("cannot decode an item: %w", err)
		}
		if err := each(item); err != nil {
			return &LocalError{err}
		}
	}
}

// TailFile copies the end of a file to w, and what it grows by when asked to
// follow. An error of w is returned as a [*LocalError].
func (c *Client) TailFile(ctx context.Context, args TailFileArgs, w io.Writer) error {
	s, err := c.openFile(ctx, OpTailFile, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	wait := s.patience
	if args.Follow {
		wait = 0
	}
	_, err = s.content(wait, -1).WriteTo(w)
	var local *LocalError
	if errors.As(err, &local) || ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// FileContent is a content on its way from the guest.
type FileContent struct {
	stream   *fileStream
	receiver fileReceiver
}

// content returns what comes next on the stream. limit is how many bytes; -1
// when that is not known.
func (s *fileStream) content(wait time.Duration, limit int64) *FileContent {
	next := func() (byte, []byte, error) { return s.next(wait) }
	return &FileContent{stream: s, receiver: fileReceiver{next: next, limit: limit}}
}

// ReadFile opens a file. As many bytes follow as were asked for and are there.
// When ctx is done the content breaks.
func (c *Client) ReadFile(ctx context.Context, args ReadFileArgs) (FileInfo, *FileContent, error) {
	var info FileInfo
	s, err := c.openFile(ctx, OpReadFile, args, &info)
	if err != nil {
		return info, nil, err
	}
	return info, s.content(s.patience, args.Expected(info.Size)), nil
}

// Start returns where the reading of a file of this size begins.
func (a ReadFileArgs) Start(size int64) int64 {
	if a.Offset < 0 {
		return max(0, size+a.Offset)
	}
	return a.Offset
}

// Expected returns how many bytes of a file of this size are asked for; -1 when that
// is not known.
func (a ReadFileArgs) Expected(size int64) int64 {
	if size < 0 {
		return -1
	}
	left := max(0, size-a.Start(size))
	if a.Length >= 0 {
		left = min(left, a.Length)
	}
	return left
}

// ReadTree opens a tar archive of a file or tree. When ctx is done it breaks.
func (c *Client) ReadTree(ctx context.Context, args PathArgs) (*FileContent, error) {
	s, err := c.openFile(ctx, OpReadTree, args, nil)
	if err != nil {
		return nil, err
	}
	return s.content(s.patience, -1), nil
}

// Read implements [io.Reader].
func (c *FileContent) Read(p []byte) (int, error) {
	n, err := c.receiver.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return n, c.stream.fault(err)
}

// WriteTo implements [io.WriterTo]. An error of w is returned as a
// [*LocalError].
func (c *FileContent) WriteTo(w io.Writer) (int64, error) {
	n, err := c.receiver.WriteTo(w)
	var local *LocalError
	if errors.As(err, &local) {
		return n, err
	}
	return n, c.stream.fault(err)
}

// Close lets go of the content, also before its end.
func (c *FileContent) Close() error { return c.stream.Close() }

// WriteFile sends content to a file. An error of content is returned as a
// [*LocalError]; the file is as it was then.
func (c *Client) WriteFile(ctx context.Context, args WriteFileArgs, content io.Reader) (FileInfo, error) {
	var info FileInfo
	err := c.send(ctx, OpWriteFile, args, content, &info)
	return info, err
}

// WriteTree sends a tar archive to be unpacked. An error of archive is returned
// as a [*LocalError].
func (c *Client) WriteTree(ctx context.Context, args WriteTreeArgs, archive io.Reader) error {
	return c.send(ctx, OpWriteTree, args, archive, nil)
}

// send sends content. The agent's word ends it, also before the content does.
func (c *Client) send(ctx context.Context, op Op, args any, content io.Reader, result any) error {
	begun, err := c.begin(ctx, op, args)
	if err != nil {
		return err
	}
	s := &fileStream{stream: begun, frames: frameReader{r: begun}}
	defer func() { _ = s.Close() }()
	said := make(chan struct{})
	var word error
	go func() {
		defer close(said)
		word = s.lastWord(result)
		_ = s.SetWriteDeadline(time.Now()) // nothing more need be sent
	}()
	sendErr := s.sendAll(&untilSaid{content: content, said: said})
	select {
	case <-said:
	default:
		if sendErr != nil {
			s.giveUp()
		}
	}
	<-said
	return s.outcome(sendErr, word)
}

// lastWord waits for what the agent says in the end.
func (s *fileStream) lastWord(result any) error {
	if err := s.waitFor(s.patience); err != nil {
		return err
	}
	if err := readResult(s, nil); err != nil {
		return err
	}
	return s.ending(fileEnd, result)
}

func (s *fileStream) sendAll(content io.Reader) error {
	sender := &fileSender{w: s}
	if _, err := sender.ReadFrom(content); err != nil {
		return err
	}
	return sender.say(fileEnd, nil)
}

// outcome is that of sending a content: what the agent has refused says more
// than that it could not be sent.
func (s *fileStream) outcome(sendErr, word error) error {
	var refused *RemoteError
	var local *LocalError
	switch early := errors.Is(sendErr, errSaid); {
	case sendErr == nil, errors.As(word, &refused):
		return s.fault(word)
	case !early && errors.As(sendErr, &local):
		return local
	case word == nil:
		return s.fault(errFileFrame) // it takes a part for the whole
	case early:
		return s.fault(word)
	default:
		return s.fault(sendErr)
	}
}

var errSaid = errors.New("the agent has spoken")

// untilSaid is a content that ends with an error once the agent has spoken.
type untilSaid struct {
	content io.Reader
	said    <-chan struct{}
}

func (u *untilSaid) Read(p []byte) (int, error) {
	select {
	case <-u.said:
		return 0, errSaid
	default:
		return u.content.Read(p)
	}
}
