package daemon_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake"
)

// serveSums serves connections that count what comes until its end, and then say so.
func serveSums(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n, err := io.Copy(io.Discard, conn)
			fmt.Fprintf(conn, "%d bytes, %v", n, err)
			_ = conn.Close()
		}
	}()
	return l
}

// A tunnel wakes its VM, and ends its directions one by one.
func TestATunnelLeadsIntoAGuest(t *testing.T) {
	guest := serveSums(t)
	w := &world{dir: t.TempDir(), onHost: func(h *daemon.Host) {
		h.Guests.(*fake.Guests).DialPort = func(ctx context.Context, port int) (net.Conn, error) {
			if port != 3000 {
				return nil, fmt.Errorf("port %d is closed", port)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", guest.Addr().String())
		}
	}}
	w.start(t)
	no := false
	v, err := w.CreateVM(t.Context(), api.CreateVM{Name: "web", MachineSpec: api.MachineSpec{EnableNetwork: &no}}, client.CreateOptions{Wait: "running"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.SleepVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	tunnel, err := w.OpenTunnel(t.Context(), v.ID, 3000)
	if err != nil {
		t.Fatal(err)
	}
	if now, err := w.GetVM(t.Context(), v.ID); err != nil || !now.InUse || now.LastActivity.Cause != "tunnel" {
		t.Errorf("the VM is %+v, %v", now, err)
	}
	const size = 1 << 20 // more than a message may be held
	if n, err := tunnel.Write(make([]byte, size)); n != size || err != nil {
		t.Errorf("wrote %d, %v", n, err)
	}
	if err := tunnel.CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(tunnel); string(got) != "1048576 bytes, <nil>" || err != nil {
		t.Errorf("the guest says %q, %v", got, err)
	}
	_ = tunnel.Close()
	for id, code := range map[string]string{v.ID: "unreachable", "vm_000000000000": "vm_not_found"} {
		if _, err := w.OpenTunnel(t.Context(), id, 3001); err == nil || id != v.ID && !client.HasCode(err, code) {
			t.Errorf("a closed port of %s: %v", id, err)
		}
	}
	if _, err := w.OpenTunnel(t.Context(), v.ID, 0); !client.IsInvalid(err) {
		t.Errorf("port 0: %v", err)
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}
