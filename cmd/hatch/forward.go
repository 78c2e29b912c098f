package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// forwardCommand is hatch forward.
type forwardCommand struct {
	*printer
	*connection
}

func (c forwardCommand) command() *cobra.Command {
	var stdio bool
	cmd := &cobra.Command{
		Use: "forward VM [LOCAL:]REMOTE...", Aliases: []string{"port-forward"}, Short: "Forward ports of this machine to ports of a VM, until interrupted",
		Long: `Listen on 127.0.0.1 of this machine, and connect each client with a port of the VM
through the API: without a route, a published port, or a network of the VM. LOCAL is
REMOTE by default; with 0 a free port is chosen. With --stdio stdin and stdout are the
connection, as for ProxyCommand of ssh. A sleeping VM is woken, and stays awake while
a connection is open.`,
		Example:           "  hatch forward web 8080\n  hatch forward db 15432:5432\n  ssh -o ProxyCommand='hatch forward --stdio web 22' root@web",
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || stdio && len(args) > 2 {
				return usage(cmd, "%s takes a VM and its ports, with --stdio one", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.forward(cmd.Context(), args[0], args[1:], stdio); err != nil {
				return fmt.Errorf("cannot forward to %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&stdio, "stdio", false, "connect stdin and stdout with the port")
	return cmd
}

func (c forwardCommand) forward(ctx context.Context, ref string, texts []string, stdio bool) error {
	server, v, err := c.openVM(ctx, ref)
	if err != nil {
		return err
	}
	if stdio {
		port, err := readPortNumber(texts[0])
		if err != nil {
			return usageError{fmt.Errorf("with --stdio give a port from 1 to 65535, not %q", texts[0])}
		}
		tunnel, err := server.OpenTunnel(ctx, v.ID, port)
		if err != nil {
			return err
		}
		return c.joinStdio(tunnel)
	}
	var doors []net.Listener
	defer func() {
		for _, l := range doors {
			_ = l.Close()
		}
	}()
	var serving sync.WaitGroup
	for _, text := range texts {
		local, remote, err := readForward(text)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", local))
		if err != nil {
			return err
		}
		doors = append(doors, l)
		fmt.Fprintf(c.out, "%s leads to port %d of %s\n", l.Addr(), remote, displayName(v))
		serving.Go(func() { c.serve(ctx, l, server, v, remote) })
	}
	<-ctx.Done()
	for _, l := range doors {
		_ = l.Close()
	}
	serving.Wait()
	return nil
}

// readForward reads [LOCAL:]REMOTE.
func readForward(text string) (local string, remote int, err error) {
	local, digits, both := strings.Cut(text, ":")
	if !both {
		digits = local
	}
	remote, err = readPortNumber(digits)
	if _, localErr := strconv.ParseUint(local, 10, 16); err != nil || localErr != nil {
		return "", 0, usageError{fmt.Errorf("a forward is [LOCAL:]REMOTE with ports up to 65535, as 8080 or 15432:5432, not %q", text)}
	}
	return local, remote, nil
}

// serve connects the clients of a listener with a port, until it is closed and they have
// ended.
func (c forwardCommand) serve(ctx context.Context, l net.Listener, server *client.Client, v api.VM, port int) {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.report(err)
			}
			return
		}
		clients.Go(func() {
			defer func() { _ = conn.Close() }()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			tunnel, err := server.OpenTunnel(ctx, v.ID, port)
			if err != nil {
				c.report(err)
				return
			}
			joinTunnel(tunnel, conn.(*net.TCPConn))
		})
	}
}

// joinTunnel copies both ways until both directions have ended, or one breaks.
func joinTunnel(tunnel *client.Tunnel, conn *net.TCPConn) {
	broken := func() { _ = tunnel.Close(); _ = conn.Close() }
	defer broken()
	var both sync.WaitGroup
	for _, way := range []struct {
		to interface {
			io.Writer
			CloseWrite() error
		}
		from io.Reader
	}{{tunnel, conn}, {conn, tunnel}} {
		both.Go(func() {
			_, err := io.Copy(way.to, way.from)
			if err == nil {
				err = way.to.CloseWrite()
			}
			if err != nil {
				broken()
			}
		})
	}
	both.Wait()
}

// joinStdio connects stdin and stdout with a tunnel until the guest ends. A read of stdin
// cannot be interrupted; its goroutine ends with the program.
func (c forwardCommand) joinStdio(tunnel *client.Tunnel) error {
	defer func() { _ = tunnel.Close() }()
	go func() {
		if _, err := io.Copy(tunnel, c.in); err == nil {
			_ = tunnel.CloseWrite()
		}
	}()
	_, err := io.Copy(c.out, tunnel)
	return err
}
