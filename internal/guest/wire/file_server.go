package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// file serves the operations on files. It reports whether it served the request.
func (r request) file(ctx context.Context, asked Request) bool {
	h, ok := r.handler.(FileHandler)
	if !ok {
		return false
	}
	switch asked.Op {
	case OpReadFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args ReadFileArgs, f *fileReply) (any, error) {
			return nil, h.ReadFile(ctx, args, func(info FileInfo) error { return f.sendFrame(fileBegan, info) }, f)
		})
	case OpListFiles:
		serveFile(ctx, r, asked, func(ctx context.Context, args PathArgs, f *fileReply) (any, error) {
			return nil, h.ListFiles(ctx, args, f.began, func(info FileInfo) error { return f.item(info) })
		})
	case OpReadTree:
		serveFile(ctx, r, asked, func(ctx context.Context, args PathArgs, f *fileReply) (any, error) {
			return nil, h.ReadTree(ctx, args, f.began, f)
		})
	case OpWatchFiles:
		serveFile(ctx, r, asked, func(ctx context.Context, args WatchFilesArgs, f *fileReply) (any, error) {
			return nil, h.WatchFiles(ctx, args, f.beganQuiet, f.report)
		})
	case OpTailFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args TailFileArgs, f *fileReply) (any, error) {
			return nil, h.TailFile(ctx, args, f.beganQuiet, f)
		})
	default:
		return r.changeFile(ctx, h, asked)
	}
	return true
}

// changeFile serves the operations that return no content. It reports whether it served
// the request.
func (r request) changeFile(ctx context.Context, h FileHandler, asked Request) bool {
	switch asked.Op {
	case OpStatFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args PathArgs, _ *fileReply) (any, error) {
			return orNil(h.StatFile(ctx, args))
		})
	case OpMakeDirectory:
		serveFile(ctx, r, asked, func(ctx context.Context, args MakeDirectoryArgs, _ *fileReply) (any, error) {
			return orNil(h.MakeDirectory(ctx, args))
		})
	case OpRenameFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args RenameFileArgs, _ *fileReply) (any, error) {
			return orNil(h.RenameFile(ctx, args))
		})
	case OpRemoveFile, OpRemoveFileIf:
		serveFile(ctx, r, asked, func(ctx context.Context, args RemoveFileArgs, _ *fileReply) (any, error) {
			return nil, h.RemoveFile(ctx, args)
		})
	case OpWriteFile, OpWriteFileIf:
		receiveFile(ctx, r, asked, func(ctx context.Context, args WriteFileArgs, content io.Reader) (any, error) {
			return orNil(h.WriteFile(ctx, args, content))
		})
	case OpWriteTree:
		receiveFile(ctx, r, asked, func(ctx context.Context, args WriteTreeArgs, archive io.Reader) (any, error) {
			return nil, h.WriteTree(ctx, args, archive)
		})
	default:
		return false
	}
	return true
}

func orNil(info FileInfo, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return info, nil
}

// fileReply sends the frames of one operation.
type fileReply struct {
	fileSender
	stopBusy context.CancelFunc // ends the fileBusy frames
}

func (f *fileReply) began() error { return f.sendFrame(fileBegan, nil) }

// beganQuiet is began for an operation that sends no fileBusy, which would keep an idle
// guest from sleeping.
func (f *fileReply) beganQuiet() error {
	f.stopBusy()
	return f.began()
}

func (f *fileReply) report(changes []FileChange) error {
	for _, c := range changes {
		if err := f.item(c); err != nil {
			return err
		}
	}
	return f.Flush()
}

// serveFile serves an operation for which hatchd sends only the request. When hatchd
// closes the stream, the operation's context is cancelled.
func serveFile[A any](ctx context.Context, r request, asked Request, do func(context.Context, A, *fileReply) (any, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		defer cancel()
		_, _ = r.stream.Read(make([]byte, 1))
		_ = r.stream.SetWriteDeadline(time.Now())
	})
	answerFile(ctx, r, asked, do)
	_ = r.stream.SetReadDeadline(time.Now())
	watching.Wait()
}

// receiveFile serves an operation with content from hatchd.
func receiveFile[A any](ctx context.Context, r request, asked Request, do func(context.Context, A, io.Reader) (any, error)) {
	frames := frameReader{r: r.stream}
	content := &fileReceiver{next: frames.next, limit: -1}
	answerFile(ctx, r, asked, func(ctx context.Context, args A, _ *fileReply) (any, error) { return do(ctx, args, content) })
}

// answerFile calls do and sends its result. It sends fileBusy frames until then.
func answerFile[A any](ctx context.Context, r request, asked Request, do func(context.Context, A, *fileReply) (any, error)) {
	var args A
	if err := json.Unmarshal(asked.Args, &args); err != nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("invalid arguments of %s", asked.Op))
		return
	}
	working, stopBusy := context.WithCancel(ctx)
	f := &fileReply{fileSender: fileSender{w: &replyWriter{stream: r.stream}}, stopBusy: stopBusy}
	var sending sync.WaitGroup
	sending.Go(func() { f.sendBusy(working, r.times.busy) })
	result, err := do(ctx, args, f)
	if err != nil {
		_ = f.sendFrame(fileError, errorReply(err))
	} else {
		_ = f.sendFrame(fileEnd, result)
	}
	stopBusy()
	sending.Wait()
}

// errorReply returns the reply for an error.
func errorReply(err error) Reply {
	if refused, ok := errors.AsType[*RemoteError](err); ok {
		return Reply{Code: refused.Code, Error: refused.Message[:min(len(refused.Message), maxReason)]}
	}
	text := err.Error()
	return Reply{Code: CodeFailed, Error: text[:min(len(text), maxReason)]}
}

// maxReason limits the message of an error, in bytes.
const maxReason = 1 << 10

// replyWriter sends the reply and the first frame in one write.
type replyWriter struct {
	stream *yamux.Stream
	sent   bool
}

func (w *replyWriter) Write(p []byte) (int, error) {
	if w.sent {
		return w.stream.Write(p)
	}
	w.sent = true
	var first bytes.Buffer
	if err := sendResult(&first, nil); err != nil {
		return 0, err
	}
	first.Write(p)
	if _, err := w.stream.Write(first.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
