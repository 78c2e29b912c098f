package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

func (c *cli) execsCommand() *cobra.Command {
	cmd := c.listExecsCommand("execs VM", "List the commands that were started in a VM, or join and end them")
	cmd.Long = `List the commands that run in a VM, with -a also those that have ended. The VM
keeps an ended one, with the end of its output, until it is removed or newer
ones need the room.`
	cmd.Example = "  hatch execs web\n  hatch execs logs -f web k3v9\n  hatch execs attach web k3v9"
	ls := c.listExecsCommand("ls VM", "List commands, as hatch execs VM does")
	ls.Aliases = []string{"list"}
	cmd.AddCommand(ls, c.execsAttachCommand(), c.execsLogsCommand(), c.execsInspectCommand(), c.execsKillCommand(), c.execsRmCommand())
	return cmd
}

func (c *cli) listExecsCommand(use, short string) *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: oneArg("VM"),
		ValidArgsFunction: c.completeVMFirst,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.listExecs(cmd.Context(), args[0], all, quiet); err != nil {
				return fmt.Errorf("cannot list the commands in %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that have ended, too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func execName(e api.Exec) named { return named{e.ID, ""} }

func (c *cli) listExecs(ctx context.Context, ref string, all, quiet bool) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := findVM(ctx, server, ref)
	if err != nil {
		return err
	}
	found, err := server.ListExecs(ctx, v.ID)
	if err != nil {
		return err
	}
	var shown []api.Exec
	for _, e := range found {
		if all || e.State == api.ExecRunning {
			shown = append(shown, e)
		}
	}
	if quiet {
		printIDs(c, shown, execName)
		return nil
	}
	return printList(c, shown, func(wide bool) table { return c.execTable(shown, wide) })
}

// maxCommand is how much of a command a table shows, in characters.
const maxCommand = 40

func (c *cli) execTable(execs []api.Exec, wide bool) table {
	t := table{head: []string{"EXEC ID", "COMMAND", "STATUS", "USER", "TTY", "AGE"}}
	if wide {
		t.head = append(t.head, "PID", "CWD", "OUTPUT")
	}
	for _, e := range execs {
		command := commandText(e.Command)
		if letters := []rune(command); !wide && len(letters) > maxCommand {
			command = string(letters[:maxCommand-1]) + "…"
		}
		user := e.User
		if user == "" {
			user = "root"
		}
		cells := []string{e.ID, command, execStatus(e), user, yesNo(e.TTY != nil), c.age(e.StartedAt)}
		if wide {
			cells = append(cells, strconv.Itoa(e.PID), e.Cwd, strconv.FormatInt(e.OutputBytes, 10))
		}
		t.row(cells...)
	}
	return t
}

// commandText is a command as one would type it.
func commandText(command api.Command) string {
	if len(command.Argv) == 0 {
		return command.Shell
	}
	words := make([]string, len(command.Argv))
	for i, word := range command.Argv {
		words[i] = quote(word)
	}
	return strings.Join(words, " ")
}

func execStatus(e api.Exec) string {
	switch {
	case e.ExitCode == nil:
		return e.State
	case e.TimedOut:
		return fmt.Sprintf("timed out (%d)", *e.ExitCode)
	}
	return fmt.Sprintf("exited (%d)", *e.ExitCode)
}

// withExec runs do with what a command line's VM and exec mean.
func (c *cli) withExec(ctx context.Context, args []string, do func(server *client.Client, vmID string, e api.Exec) error) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	v, err := findVM(ctx, server, args[0])
	if err != nil {
		return err
	}
	execs, err := server.ListExecs(ctx, v.ID)
	if err != nil {
		return err
	}
	e, err := pickFrom("exec", args[1], execs, execName)
	if err != nil {
		return orList(err, "hatch execs -a "+displayName(v))
	}
	return do(server, v.ID, e)
}

func twoArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usage(cmd, "%s takes a VM and an exec; %d arguments were given", cmd.CommandPath(), len(args))
	}
	return nil
}

func (c *cli) completeExecs(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return c.completeVMFirst(cmd, args, word)
	}
	return c.suggest(cmd, func(ctx context.Context, server *client.Client) ([]suggestion, error) {
		v, err := findVM(ctx, server, args[0])
		if err != nil {
			return nil, err
		}
		execs, err := server.ListExecs(ctx, v.ID)
		var found []suggestion
		for _, e := range execs {
			found = append(found, suggestion{execName(e), commandText(e.Command)})
		}
		return found, err
	})
}

func (c *cli) execsAttachCommand() *cobra.Command {
	return &cobra.Command{
		Use: "attach VM EXEC", Short: "Join a command: its output from the beginning, and its stdin", Args: twoArgs,
		Long: `Join a command that was started before: its output, as far as the VM keeps it,
then what comes, and stdin, if the command was started with -i. It ends with the
command, and with its exit code.`,
		ValidArgsFunction: c.completeExecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.withExec(cmd.Context(), args, func(server *client.Client, vmID string, e api.Exec) error {
				view := execView{interactive: e.State == api.ExecRunning, tty: e.TTY != nil}
				return c.attachTo(cmd.Context(), view, func(ctx context.Context) (*client.ExecSession, error) {
					return server.AttachExec(ctx, vmID, e.ID, 0)
				})
			})
			if err != nil {
				return inWords(err, "cannot join "+args[1])
			}
			return nil
		},
	}
}

func (c *cli) execsLogsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs VM EXEC", Short: "Print what a command has said, as far as the VM keeps it", Args: twoArgs,
		ValidArgsFunction: c.completeExecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.withExec(cmd.Context(), args, func(server *client.Client, vmID string, e api.Exec) error {
				log, err := server.ExecLogs(cmd.Context(), vmID, e.ID, follow)
				if err != nil {
					return err
				}
				defer func() { _ = log.Close() }()
				_, err = io.Copy(c.out, log)
				return err
			})
			if err != nil {
				return fmt.Errorf("cannot read the output of %s: %w", args[1], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the command ends")
	return cmd
}

func (c *cli) execsInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect VM EXEC", Short: "Show all there is to know of a command, as JSON", Args: twoArgs,
		ValidArgsFunction: c.completeExecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.withExec(cmd.Context(), args, func(_ *client.Client, _ string, e api.Exec) error { return c.printInspected(cmd, e) })
			if err != nil {
				return fmt.Errorf("cannot inspect %s: %w", args[1], err)
			}
			return nil
		},
	}
}

func (c *cli) execsKillCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use: "kill VM EXEC", Short: "Send a signal to a command and all it started", Args: twoArgs,
		ValidArgsFunction: c.completeExecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.withExec(cmd.Context(), args, func(server *client.Client, vmID string, e api.Exec) error {
				return server.SignalExec(cmd.Context(), vmID, e.ID, signal)
			})
			if err != nil {
				return fmt.Errorf("cannot signal %s: %w", args[1], err)
			}
			fmt.Fprintln(c.out, args[1])
			return nil
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal` to send, by name or number")
	return cmd
}

func (c *cli) execsRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm VM EXEC", Short: "Kill a command, if it runs, and forget it and its output", Args: twoArgs,
		ValidArgsFunction: c.completeExecs,
		RunE: func(cmd *cobra.Command, args []string) error {
			err := c.withExec(cmd.Context(), args, func(server *client.Client, vmID string, e api.Exec) error {
				return server.DeleteExec(cmd.Context(), vmID, e.ID)
			})
			if err != nil {
				return fmt.Errorf("cannot remove %s: %w", args[1], err)
			}
			fmt.Fprintln(c.out, args[1])
			return nil
		},
	}
}
