package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/yamux"
)

// Handler serves hatchd's requests in the guest. Its methods may be called from several
// goroutines at once.
type Handler interface {
	Hello() Hello
	Status() Status

	// Watch calls report with the state now and after each change, until ctx is done or
	// report fails. It returns the cause of its end.
	Watch(ctx context.Context, report func(Status) error) error

	// Shutdown prepares to power off or reboot. The caller calls begin once the answer
	// has been sent.
	Shutdown(ctx context.Context, args ShutdownArgs) (begin func(), err error)
}

// Server is the agent's end of a session.
type Server struct {
	conn  io.ReadWriteCloser
	times times
}

// Accept waits for a host to start a session on conn. The session then owns conn. If
// Accept fails, the caller still owns it.
func Accept(conn io.ReadWriteCloser) (*Server, error) {
	_, rest, err := answer(conn)
	if err != nil {
		return nil, fmt.Errorf("the handshake with a host failed: %w", err)
	}
	return &Server{conn: &buffered{Reader: rest, conn: conn}, times: defaultTimes}, nil
}

// Run serves requests until the session ends or ctx is done. It waits for the last
// request, closes conn and returns the cause of the end.
func (s *Server) Run(ctx context.Context, h Handler) error {
	session, err := yamux.Server(s.conn, config(agentPing, agentTimeout))
	if err != nil {
		return fmt.Errorf("cannot start a session: %w", err)
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
				sendError(stream, CodeBusy, "the agent is serving its maximum number of requests")
			}
		})
	}
}

// request is a stream that is being served.
type request struct {
	handler Handler
	stream  *yamux.Stream
	times   times
}

// serve serves the request. An error of the stream ends only this request.
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
		if r.process(ctx, asked) || r.usage(asked) || r.activity(asked) || r.trim(asked) || r.woken(asked) || r.trustSSH(asked) || r.reidentify(ctx, asked) || r.dial(ctx, asked) || r.file(ctx, asked) {
			return
		}
		sendError(r.stream, CodeUnknownOp, fmt.Sprintf("this agent does not know %q", asked.Op))
	}
}

// watch sends the state until hatchd closes the stream.
func (r request) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = r.stream.Read(make([]byte, 1)) // hatchd sends nothing more
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
			sendError(r.stream, CodeInvalid, "invalid arguments of shutdown")
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

// sendFailure sends an error with its own code, if it has one.
func sendFailure(w io.Writer, err error) { _ = writeMessage(w, errorReply(err)) }

func sendError(w io.Writer, code, message string) {
	_ = writeMessage(w, Reply{Code: code, Error: message})
}
