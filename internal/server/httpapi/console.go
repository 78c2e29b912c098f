package httpapi

import (
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
)

const consoleText = `The VM's serial console over a WebSocket, in binary messages both ways. The latest output comes first. ` +
	`One caller at a time may write; with readonly any number may watch. A sleeping VM is woken first.`

type vmConsoleInput struct {
	IDPath
	ReadOnly bool `query:"readonly" doc:"Only watch."`
}

func (h *outputHandlers) console(ctx context.Context, in *vmConsoleInput) (*huma.StreamResponse, error) {
	if _, err := h.vms.Get(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return h.upgraded(func(w http.ResponseWriter, r *http.Request) error { return h.openConsole(w, r, in) }), nil
}

// openConsole serves the console until either side closes.
func (h *outputHandlers) openConsole(w http.ResponseWriter, r *http.Request, in *vmConsoleInput) error {
	if err := h.checkUpgrade(r); err != nil {
		return err
	}
	console, err := h.vms.Console(r.Context(), scope(r.Context()), in.ID, in.ReadOnly)
	if err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, originChecked)
	if err != nil { // Accept has answered
		_ = console.Close()
		return nil
	}
	joinConsole(r.Context(), conn, console, in.ReadOnly)
	return nil
}

// joinConsole copies in both directions until either side closes, and then closes the
// other.
func joinConsole(ctx context.Context, conn *websocket.Conn, console io.ReadWriteCloser, readOnly bool) {
	ctx, cancel := context.WithCancel(ctx)
	client := websocket.NetConn(ctx, conn, websocket.MessageBinary)
	input := io.Writer(console)
	if readOnly {
		input = io.Discard
	}
	var sides sync.WaitGroup
	// Close conn, not client: that would first cancel the read that waits for the
	// answer to the close frame, which cuts the connection.
	end := sync.OnceFunc(func() {
		_ = console.Close()
		_ = conn.Close(websocket.StatusNormalClosure, "")
		cancel()
	})
	sides.Go(func() { defer end(); _, _ = io.Copy(client, console) })
	sides.Go(func() { defer end(); _, _ = io.Copy(input, client) })
	sides.Go(func() { defer end(); ping(ctx, conn, func() bool { return false }) })
	sides.Wait()
}
