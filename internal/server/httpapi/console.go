package httpapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/internal/errs"
)

const consoleText = `The VM's serial console over a WebSocket, in binary messages both ways. What was printed lately comes first. ` +
	`One caller at a time may write; with readonly any number may watch.`

// pingEvery is how often an idle console's client must show that it is there.
const pingEvery = 30 * time.Second

type vmConsoleInput struct {
	IDPath
	ReadOnly bool `query:"readonly" doc:"Only watch."`
}

func (d *door) vmConsole(ctx context.Context, in *vmConsoleInput) (*huma.StreamResponse, error) {
	if _, err := d.VMs.Get(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		if err := d.openConsole(w, r, in); err != nil {
			d.writeProblem(w, r, err)
		}
	}}, nil
}

// openConsole serves the console until a side ends. Its errors come before
// anything has been answered.
func (d *door) openConsole(w http.ResponseWriter, r *http.Request, in *vmConsoleInput) error {
	if err := checkUpgrade(r); err != nil {
		return err
	}
	console, err := d.VMs.Console(r.Context(), owner(r.Context()), in.ID, in.ReadOnly)
	if err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil { // Accept has answered
		_ = console.Close()
		return nil
	}
	joinConsole(r.Context(), conn, console, in.ReadOnly)
	return nil
}

// checkUpgrade refuses what is no WebSocket, and pages of other sites.
func checkUpgrade(r *http.Request) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return errs.New(errs.Invalid, "websocket_needed", "cannot open the console: it is served over a WebSocket only")
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil // no browser
	}
	if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
		return errs.New(errs.Forbidden, "foreign_origin", "cannot open the console for a page of another site")
	}
	return nil
}

// joinConsole copies both ways until either side ends, and then ends the other.
func joinConsole(ctx context.Context, conn *websocket.Conn, console io.ReadWriteCloser, readOnly bool) {
	ctx, cancel := context.WithCancel(ctx)
	client := websocket.NetConn(ctx, conn, websocket.MessageBinary)
	input := io.Writer(console)
	if readOnly {
		input = io.Discard
	}
	var sides sync.WaitGroup
	// Closing conn, not client: that would first cancel the read that waits
	// for the answer to the close frame, and with it cut the connection.
	end := sync.OnceFunc(func() {
		_ = console.Close()
		_ = conn.Close(websocket.StatusNormalClosure, "")
		cancel()
	})
	sides.Go(func() { defer end(); _, _ = io.Copy(client, console) })
	sides.Go(func() { defer end(); _, _ = io.Copy(input, client) })
	sides.Go(func() { defer end(); ping(ctx, conn) })
	sides.Wait()
}

// ping returns once the client does not answer any more, or ctx is done.
func ping(ctx context.Context, conn *websocket.Conn) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		bounded, cancel := context.WithTimeout(ctx, pingEvery)
		err := conn.Ping(bounded)
		cancel()
		if err != nil {
			return
		}
	}
}
