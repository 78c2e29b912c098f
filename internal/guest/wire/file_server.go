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

// file serves an operation on files, and reports whether it is one that the
// handler knows.
func (r request) file(ctx context.Context, asked Request) bool {
	h, ok := r.handler.(FileHandler)
	if !ok {
		return false
	}
	switch asked.Op {
	case OpReadFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args ReadFileArgs, f *fileReply) (any, error) {
			return nil, h.ReadFile(ctx, args, func(info FileInfo) error { return f.say(fileBegan, info) }, f)
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
			return nil, h.WatchFiles(ctx, args, f.lasting, f.report)
		})
	case OpTailFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args TailFileArgs, f *fileReply) (any, error) {
			return nil, h.TailFile(ctx, args, f.lasting, f)
		})
	default:
		return r.changeFile(ctx, h, asked)
	}
	return true
}

// changeFile serves what changes files, or looks at one.
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
	case OpRemoveFile:
		serveFile(ctx, r, asked, func(ctx context.Context, args RemoveFileArgs, _ *fileReply) (any, error) {
			return nil, h.RemoveFile(ctx, args)
		})
	case OpWriteFile:
		takeFile(ctx, r, asked, func(ctx context.Context, args WriteFileArgs, content io.Reader) (any, error) {
			return orNil(h.WriteFile(ctx, args, content))
		})
	case OpWriteTree:
		takeFile(ctx, r, asked, func(ctx context.Context, args WriteTreeArgs, archive io.Reader) (any, error) {
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

// fileReply is the agent's side of one operation.
type fileReply struct {
	fileSender
	stopBeat context.CancelFunc
}

func (f *fileReply) began() error { return f.say(fileBegan, nil) }

// lasting begins an operation that is silent while there is nothing to tell: an
// idle guest sleeps.
func (f *fileReply) lasting() error {
	f.stopBeat()
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

// serveFile serves an operation in which the host sends nothing more; when it
// lets go the operation's context ends.
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

// takeFile serves an operation that takes a content.
func takeFile[A any](ctx context.Context, r request, asked Request, do func(context.Context, A, io.Reader) (any, error)) {
	frames := frameReader{r: r.stream}
	content := &fileReceiver{next: frames.next, limit: -1}
	answerFile(ctx, r, asked, func(ctx context.Context, args A, _ *fileReply) (any, error) { return do(ctx, args, content) })
}

// answerFile does as asked and says how it went. Meanwhile it says that it is
// at work.
func answerFile[A any](ctx context.Context, r request, asked Request, do func(context.Context, A, *fileReply) (any, error)) {
	var args A
	if err := json.Unmarshal(asked.Args, &args); err != nil {
		sendError(r.stream, CodeInvalid, fmt.Sprintf("the arguments of %s are not understood", asked.Op))
		return
	}
	beating, stopBeat := context.WithCancel(ctx)
	f := &fileReply{fileSender: fileSender{w: &replied{stream: r.stream}}, stopBeat: stopBeat}
	var beats sync.WaitGroup
	beats.Go(func() { f.beat(beating, r.times.beat) })
	result, err := do(ctx, args, f)
	if err != nil {
		_ = f.say(fileError, failed(err))
	} else {
		_ = f.say(fileEnd, result)
	}
	stopBeat()
	beats.Wait()
}

// failed is the reply for an error.
func failed(err error) Reply {
	var refused *RemoteError
	if errors.As(err, &refused) {
		return Reply{Code: refused.Code, Error: refused.Message[:min(len(refused.Message), maxReason)]}
	}
	text := err.Error()
	return Reply{Code: CodeFailed, Error: text[:min(len(text), maxReason)]}
}

// maxReason bounds the words for a failure, in bytes.
const maxReason = 1 << 10

// replied puts the reply in front of what is sent first, in one piece.
type replied struct {
	stream *yamux.Stream
	said   bool
}

func (w *replied) Write(p []byte) (int, error) {
	if w.said {
		return w.stream.Write(p)
	}
	w.said = true
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
