package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// detachKey is ctrl-].
const detachKey = 0x1d

// consoleCommand is hatch console.
type consoleCommand struct {
	*printer
	*connection
}

func (c consoleCommand) command() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use: "console VM", Aliases: []string{"attach"}, Short: "Connect to a VM's serial console (leave with ctrl-])", Args: oneArg("VM"),
		Long: `Connect to a VM's serial console. On a terminal, ctrl-] leaves it. Otherwise
stdin is typed into the console and the command runs until the VM stops or it is
interrupted; timeout(1) bounds it.`,
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, v, err := c.openVM(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("cannot connect to the console of %s: %w", args[0], err)
			}
			return c.attach(cmd.Context(), server, v, readOnly)
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "watch only; several clients can")
	return cmd
}

// attach connects stdin and stdout to the VM's console.
func (c consoleCommand) attach(ctx context.Context, server *client.Client, v api.VM, readOnly bool) error {
	conn, err := server.VMConsole(ctx, v.ID, readOnly)
	if err != nil {
		return fmt.Errorf("cannot connect to the console of %s: %w", displayName(v), err)
	}
	defer func() { _ = conn.Close() }()
	if c.inTTY && !readOnly {
		fmt.Fprintf(c.err, "connected to %s; ctrl-] leaves\n", displayName(v))
		restore, err := c.raw()
		if err != nil {
			return fmt.Errorf("cannot set the terminal up: %w", err)
		}
		defer func() { restore(); fmt.Fprintln(c.err) }()
	}
	return c.join(conn, readOnly)
}

// join copies both ways until the console ends or the user leaves. A read of
// stdin cannot be interrupted; its goroutine ends with the program.
func (c consoleCommand) join(conn io.ReadWriter, readOnly bool) error {
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(c.out, conn)
		ended <- err
	}()
	if !readOnly {
		go func() {
			left, err := c.typeInto(conn)
			if left || err != nil {
				ended <- err
			}
		}()
	}
	if err := <-ended; err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the connection to the console broke: %w", err)
	}
	return nil
}

// typeInto copies stdin to the console and reports whether the user left.
func (c consoleCommand) typeInto(conn io.Writer) (left bool, err error) {
	buf := make([]byte, 4096)
	for {
		n, err := c.in.Read(buf)
		typed := buf[:n]
		if i := bytes.IndexByte(typed, detachKey); c.inTTY && i >= 0 {
			typed, left = typed[:i], true
		}
		if _, werr := conn.Write(typed); len(typed) > 0 && werr != nil {
			return false, werr
		}
		if left || errors.Is(err, io.EOF) {
			return left, nil
		}
		if err != nil {
			return false, err
		}
	}
}
