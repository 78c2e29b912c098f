package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/yamux"
)

// Handler does in the guest what hatchd asks for. Its methods may be called
// from several goroutines at once.
type Handler interface {
	Hello() Hello
	Status() Status

	// Watch calls report with the state now and after each change, until ctx
	// is done or report fails; it returns why it ended.
	Watch(ctx context.Context, report func(Status) error) error

	// Shutdown prepares to power off or reboot, and returns what begins it.
	// begin runs once the answer is on its way.
	Shutdown(ctx context.Context, args ShutdownArgs) (begin func(), err error)
}

// Server is the agent's end of a session.
type Server struct {
	conn  io.ReadWriteCloser
	times times
}

// Accept waits on conn for a host to begin a session. conn is the session's
// from then on; when Accept fails it is still the caller's.
func Accept(conn io.ReadWriteCloser) (*Server, error) {
	_, rest, err := answer(conn)
	if err != nil {
		return nil, fmt.Errorf("cannot answer a host: %w", err)
	}
	return &Server{conn: &buffered{Reader: rest, conn: conn}, times: usualTimes}, nil
}

// Run serves requests until the session ends or ctx is done, and returns the
// reason once none runs any more. conn is closed then.
func (s *Server) Run(ctx context.Context, h Handler) error {
	session, err := yamux.Server(s.conn, config(agentPing, agentTimeout))
	if err != nil {
		return fmt.Errorf("cannot begin a session: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var requests sync.WaitGroup
	defer requests.Wait()
	defer func() { _ = session.Close() }()
	defer cancel()
	slots := make(chan struct{}, maxStreams)
	for {
		stream, err := session.AcceptStreamWithContext(ctx)
		if err != nil {
			return fmt.Errorf("the session ended: %w", err)
		}
		requests.Go(func() {
			defer func() { _ = stream.Close() }()
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				request{handler: h, stream: stream, times: s.times}.serve(ctx)
			default:
				sendError(stream, CodeBusy, "the agent serves as many requests as it can")
			}
		})
	}
}

// request is one stream being served.
type request struct {
	handler Handler
	stream  *yamux.Stream
	times   times
}

// serve handles the stream. Whatever goes wrong with the stream itself ends it;
// there is nobody else to tell.
func (r request) serve(ctx context.Context) {
	var asked Request
	if err := readLimited(r.stream, &asked, maxRequest); err != nil {
		return
	}
	switch asked.Op {
	case OpHello:
		_ = sendResult(r.stream, r.handler.Hello())
	case OpStatus:
		_ = sendResult(r.stream, r.handler.Status())
	case OpWatch:
		r.watch(ctx)
	case OpShutdown:
		r.shutdown(ctx, asked.Args)
	default:
		if r.process(ctx, asked) || r.usage(asked) || r.woken(asked) || r.recast(ctx, asked) || r.dial(ctx, asked) || r.file(ctx, asked) {
			return
		}
		sendError(r.stream, CodeUnknownOp, fmt.Sprintf("this agent does not know %q", asked.Op))
	}
}

// watch reports until the host closes the stream.
func (r request) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = r.stream.Read(make([]byte, 1)) // the host sends nothing more
		cancel()
	}()
	_ = r.handler.Watch(ctx, func(st Status) error { return sendResult(r.stream, st) })
	_ = r.stream.Close()
	cancel()
	<-closed
}

func (r request) shutdown(ctx context.Context, raw json.RawMessage) {
	var args ShutdownArgs
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &args); err != nil {
			sendError(r.stream, CodeInvalid, "the arguments of shutdown are not understood")
			return
		}
	}
	begin, err := r.handler.Shutdown(ctx, args)
	if err != nil {
		sendError(r.stream, CodeFailed, err.Error())
		return
	}
	_ = sendResult(r.stream, nil)
	begin()
}

func sendResult(w io.Writer, result any) error {
	raw, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("cannot encode a result: %w", err)
	}
	return writeMessage(w, Reply{OK: true, Result: raw})
}

// sendFailure answers with the error's own code, if it has one.
func sendFailure(w io.Writer, err error) { _ = writeMessage(w, failed(err)) }

func sendError(w io.Writer, code, message string) {
	_ = writeMessage(w, Reply{Code: code, Error: message})
}
