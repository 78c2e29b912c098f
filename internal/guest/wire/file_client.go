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
	frames  frameReader
	aborted atomic.Bool
}

// beginFile sends a request and waits for its reply, which confirms that the agent knows
// the operation.
func (c *Client) beginFile(ctx context.Context, op Op, args any) (*fileStream, error) {
	s, err := c.begin(ctx, op, args)
	if err != nil {
		return nil, err
	}
	if err := s.firstReply(nil); err != nil {
		_ = s.Close()
		return nil, s.explain(err)
	}
	return &fileStream{stream: s, frames: frameReader{r: s}}, nil
}

// openFile is beginFile for an operation with fileBegan, whose payload it decodes
// into result.
func (c *Client) openFile(ctx context.Context, op Op, args, result any) (*fileStream, error) {
	s, err := c.beginFile(ctx, op, args)
	if err != nil {
		return nil, err
	}
	if err := s.awaitFrame(fileBegan, result); err != nil {
		_ = s.Close()
		return nil, s.explain(err)
	}
	return s, nil
}

// next returns the next frame. timeout limits the wait for it; 0 means no limit.
func (s *fileStream) next(timeout time.Duration) (kind byte, payload []byte, err error) {
	if err := s.setTimeout(timeout); err != nil {
		return 0, nil, err
	}
	kind, payload, err = s.frames.next()
	if errors.Is(err, io.EOF) {
		err = ErrCut
	}
	return kind, payload, err
}

// setTimeout sets the deadline of the next read. That may replace a deadline that abort or
// the context has just set, so it checks both.
func (s *fileStream) setTimeout(timeout time.Duration) error {
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	_ = s.SetReadDeadline(deadline)
	if s.aborted.Load() {
		return ErrCut
	}
	return s.cause()
}

// abort interrupts all reads and writes of the stream.
func (s *fileStream) abort() {
	s.aborted.Store(true)
	_ = s.SetDeadline(time.Now())
}

// awaitFrame waits for a frame of the wanted kind, and decodes it.
func (s *fileStream) awaitFrame(wanted byte, result any) error {
	for {
		kind, payload, err := s.next(s.timeout)
		if err != nil {
			return err
		}
		if kind != fileBusy {
			return decodeFrame(wanted, kind, payload, result)
		}
	}
}

// StatFile describes a file. It does not follow a link.
func (c *Client) StatFile(ctx context.Context, args PathArgs) (FileInfo, error) {
	var info FileInfo
	err := c.fileCall(ctx, OpStatFile, args, &info)
	return info, err
}

// MakeDirectory creates a directory.
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
	op := OpRemoveFile
	if args.If != nil {
		op = OpRemoveFileIf
	}
	return c.fileCall(ctx, op, args, nil)
}

// fileCall makes a request without content.
func (c *Client) fileCall(ctx context.Context, op Op, args, result any) error {
	s, err := c.beginFile(ctx, op, args)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return s.explain(s.awaitFrame(fileEnd, result))
}

// ListFiles calls each for the entries of a directory, whose Path is only the name. It
// returns an error of each as a [*LocalError].
func (c *Client) ListFiles(ctx context.Context, args PathArgs, each func(FileInfo) error) error {
	s, err := c.openFile(ctx, OpListFiles, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	return s.explain(eachItem(s, s.timeout, each))
}

// WatchFiles calls began, and then report for each change, until ctx is done or report
// fails. It returns an error of report as a [*LocalError].
func (c *Client) WatchFiles(ctx context.Context, args WatchFilesArgs, began func(), report func(FileChange) error) error {
	s, err := c.openFile(ctx, OpWatchFiles, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	began()
	return s.explain(eachItem(s, 0, report))
}

// eachItem calls each for every item up to the end. timeout limits the wait for each item.
func eachItem[T any](s *fileStream, timeout time.Duration, each func(T) error) error {
	for {
		kind, payload, err := s.next(timeout)
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

// TailFile copies the last lines of a file to w and, with Follow, all that is appended.
// It returns an error of w as a [*LocalError].
func (c *Client) TailFile(ctx context.Context, args TailFileArgs, w io.Writer) error {
	s, err := c.openFile(ctx, OpTailFile, args, nil)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	timeout := s.timeout
	if args.Follow {
		timeout = 0
	}
	_, err = s.content(timeout, -1).WriteTo(w)
	var local *LocalError
	if errors.As(err, &local) || ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// FileContent reads content from the guest.
type FileContent struct {
	stream   *fileStream
	receiver fileReceiver
}

// content returns the content that follows on the stream. Its length is limit bytes, or
// unknown if limit is -1.
func (s *fileStream) content(timeout time.Duration, limit int64) *FileContent {
	next := func() (byte, []byte, error) { return s.next(timeout) }
	return &FileContent{stream: s, receiver: fileReceiver{next: next, limit: limit}}
}

// ReadFile opens a file. The content is the part that args describe. Reads fail when ctx
// is done.
func (c *Client) ReadFile(ctx context.Context, args ReadFileArgs) (FileInfo, *FileContent, error) {
	var info FileInfo
	s, err := c.openFile(ctx, OpReadFile, args, &info)
	if err != nil {
		return info, nil, err
	}
	return info, s.content(s.timeout, args.Expected(info.Size)), nil
}

// Start returns the offset at which the part of a file of this size begins.
func (a ReadFileArgs) Start(size int64) int64 {
	if a.Offset < 0 {
		return max(0, size+a.Offset)
	}
	return a.Offset
}

// Expected returns the length of the part of a file of this size, or -1 if the size is
// unknown.
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

// ReadTree opens a tar archive of a file or tree. Reads fail when ctx is done.
func (c *Client) ReadTree(ctx context.Context, args PathArgs) (*FileContent, error) {
	s, err := c.openFile(ctx, OpReadTree, args, nil)
	if err != nil {
		return nil, err
	}
	return s.content(s.timeout, -1), nil
}

// Read implements [io.Reader].
func (c *FileContent) Read(p []byte) (int, error) {
	n, err := c.receiver.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return n, c.stream.explain(err)
}

// WriteTo implements [io.WriterTo]. It returns an error of w as a [*LocalError].
func (c *FileContent) WriteTo(w io.Writer) (int64, error) {
	n, err := c.receiver.WriteTo(w)
	if _, ok := errors.AsType[*LocalError](err); ok {
		return n, err
	}
	return n, c.stream.explain(err)
}

// Close implements [io.Closer]. It may be called before the end.
func (c *FileContent) Close() error { return c.stream.Close() }

// WriteFile writes content to a file. It returns an error of content as a [*LocalError],
// and then the old file stays.
func (c *Client) WriteFile(ctx context.Context, args WriteFileArgs, content io.Reader) (FileInfo, error) {
	var info FileInfo
	op := OpWriteFile
	if args.If != nil {
		op = OpWriteFileIf
	}
	err := c.send(ctx, op, args, content, &info)
	return info, err
}

// WriteTree unpacks a tar archive in the guest. It returns an error of archive as a
// [*LocalError].
func (c *Client) WriteTree(ctx context.Context, args WriteTreeArgs, archive io.Reader) error {
	return c.send(ctx, OpWriteTree, args, archive, nil)
}

// send sends content. The agent may answer before the content is complete, which ends
// the sending.
func (c *Client) send(ctx context.Context, op Op, args any, content io.Reader, result any) error {
	begun, err := c.begin(ctx, op, args)
	if err != nil {
		return err
	}
	s := &fileStream{stream: begun, frames: frameReader{r: begun}}
	defer func() { _ = s.Close() }()
	answered := make(chan struct{})
	var answerErr error
	go func() {
		defer close(answered)
		answerErr = s.awaitAnswer(result)
		_ = s.SetWriteDeadline(time.Now()) // interrupts the sending
	}()
	sender := &fileSender{w: s}
	_, sendErr := sender.ReadFrom(&untilAnswered{content: content, answered: answered})
	if sendErr == nil {
		sendErr = sender.sendFrame(fileEnd, nil)
	}
	select {
	case <-answered:
	default:
		if sendErr != nil {
			s.abort()
		}
	}
	<-answered
	return s.result(sendErr, answerErr)
}

// awaitAnswer waits for the agent's answer to the content.
func (s *fileStream) awaitAnswer(result any) error {
	if err := s.setTimeout(s.timeout); err != nil {
		return err
	}
	if err := readResult(s, nil); err != nil {
		return err
	}
	return s.awaitFrame(fileEnd, result)
}

// result returns the error of sending content. It prefers an error that the agent
// answered to the error of the sending that this caused.
func (s *fileStream) result(sendErr, answer error) error {
	var refused *RemoteError
	var local *LocalError
	switch early := errors.Is(sendErr, errAnswered); {
	case sendErr == nil, errors.As(answer, &refused):
		return s.explain(answer)
	case !early && errors.As(sendErr, &local):
		return local
	case answer == nil:
		return s.explain(errFileFrame) // the agent accepted incomplete content
	case early:
		return s.explain(answer)
	default:
		return s.explain(sendErr)
	}
}

var errAnswered = errors.New("the agent has answered")

// untilAnswered reads content, and fails once the agent has answered.
type untilAnswered struct {
	content  io.Reader
	answered <-chan struct{}
}

func (u *untilAnswered) Read(p []byte) (int, error) {
	select {
	case <-u.answered:
		return 0, errAnswered
	default:
		return u.content.Read(p)
	}
}
