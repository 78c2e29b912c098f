package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/vm"
)

const tunnelText = `A connection to a TCP port of the guest over a WebSocket, in binary messages both ways; an empty message ends the direction of its sender, as the end of a TCP stream does. ` +
	`What listens on the guest's loopback address only is reached, too, through its agent. A sleeping VM is woken first, and stays awake as long as the tunnel is open.`

// tunnelHandlers serves connections to ports of guests.
type tunnelHandlers struct {
	*door
	vms interface {
		vmGetter
		Tunnels
	}
}

// Tunnels leads to ports of guests.
type Tunnels interface {
	// Tunnel connects to a port of a VM in scope, after it was woken if it slept.
	// Errors: errs.NotFound; errs.Unavailable with code port_closed or port_refused; those of a wake.
	Tunnel(ctx context.Context, scope access.Scope, id string, port int) (vm.PortConn, error)
}

type tunnelInput struct {
	IDPath
	Port int `query:"port" required:"true" minimum:"1" maximum:"65535" doc:"Port in the guest."`
}

func (h *tunnelHandlers) open(ctx context.Context, in *tunnelInput) (*huma.StreamResponse, error) {
	if _, err := h.vms.Get(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return h.upgraded(func(w http.ResponseWriter, r *http.Request) error { return h.serve(w, r, in) }), nil
}

// serve connects the client with the port until both directions have ended.
func (h *tunnelHandlers) serve(w http.ResponseWriter, r *http.Request, in *tunnelInput) error {
	if err := h.checkUpgrade(r); err != nil {
		return err
	}
	guest, err := h.vms.Tunnel(r.Context(), scope(r.Context()), in.ID, in.Port)
	if err != nil {
		return err
	}
	defer func() { _ = guest.Close() }()
	conn, err := websocket.Accept(w, r, originChecked)
	if err != nil { // Accept has answered
		return nil
	}
	joinTunnel(r.Context(), conn, guest)
	return nil
}

// joinTunnel copies both ways until both directions have ended, or one breaks.
func joinTunnel(ctx context.Context, client *websocket.Conn, guest vm.PortConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := sync.OnceFunc(func() { _ = guest.Close(); _ = client.CloseNow() })
	defer context.AfterFunc(ctx, broken)()
	var directions, watch sync.WaitGroup
	for _, copies := range []func(context.Context, *websocket.Conn, vm.PortConn) error{toGuest, fromGuest} {
		directions.Go(func() {
			if err := copies(ctx, client, guest); err != nil {
				broken()
			}
		})
	}
	watch.Go(func() {
		ping(ctx, client, func() bool { return false })
		broken()
	})
	directions.Wait()
	_ = client.Close(websocket.StatusNormalClosure, "")
	cancel()
	watch.Wait()
}

var errNoBytes = errors.New("a tunnel takes binary messages only")

// toGuest passes on what the client sends, in pieces, up to its empty message.
func toGuest(ctx context.Context, client *websocket.Conn, guest vm.PortConn) error {
	client.SetReadLimit(-1) // nothing holds a whole message
	for {
		kind, message, err := client.Reader(ctx)
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			_ = client.Close(websocket.StatusUnsupportedData, errNoBytes.Error())
			return errNoBytes
		}
		n, err := io.Copy(guest, message)
		if err != nil {
			return err
		}
		if n == 0 {
			// From here on only pings are read, and the end.
			context.AfterFunc(client.CloseRead(ctx), func() { _ = guest.Close() })
			return guest.CloseWrite()
		}
	}
}

// tunnelPiece is the size of the largest message to a client.
const tunnelPiece = 64 << 10

// fromGuest passes on what the guest sends, and its end as an empty message.
func fromGuest(ctx context.Context, client *websocket.Conn, guest vm.PortConn) error {
	buf := make([]byte, tunnelPiece)
	for {
		n, err := guest.Read(buf)
		if n > 0 {
			if err := client.Write(ctx, websocket.MessageBinary, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return client.Write(ctx, websocket.MessageBinary, nil)
		case err != nil:
			return err
		}
	}
}
