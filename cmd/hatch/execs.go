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

// execKind is the commands in one VM.
func execKind(v api.VM) kind[api.Exec] {
	return kind[api.Exec]{
		noun: "exec", ls: "hatch execs -a " + displayName(v),
		list: func(server *client.Client, ctx context.Context) ([]api.Exec, error) {
			return server.ListExecs(ctx, v.ID)
		},
		name:  func(e api.Exec) named { return named{e.ID, ""} },
		about: func(e api.Exec) string { return commandText(e.Command) },
	}
}

func (c execCommands) execs() *cobra.Command {
	cmd := c.lsCommand("execs VM", "List the commands in a VM, or attach to them and end them")
	cmd.Long = `List the running commands in a VM, with -a the exited ones, too. The VM keeps an
exited command, with the last of its output, until it is removed or newer ones
need the space.`
	cmd.Example = "  hatch execs web\n  hatch execs logs -f web k3v9\n  hatch execs attach web k3v9"
	ls := c.lsCommand("ls VM", "List commands, as hatch execs VM does")
	ls.Aliases = []string{"list"}
	cmd.AddCommand(ls, c.attachCommand(), c.logsCommand(), c.inspectCommand(), c.killCommand(), c.rmCommand())
	return cmd
}

func (c execCommands) lsCommand(use, short string) *cobra.Command {
	var all bool
	f := &listFlags{}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: oneArg("VM"),
		ValidArgsFunction: vmKind.completeFirst(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := arranged[api.Exec](nil, f); err != nil { // before the first request
				return err
			}
			if err := c.list(cmd.Context(), args[0], all, f); err != nil {
				return fmt.Errorf("cannot list the commands in %s: %w", args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "exited ones, too")
	f.add(c.printer, cmd)
	return cmd
}

func (c execCommands) list(ctx context.Context, ref string, all bool, f *listFlags) error {
	server, v, err := c.openVM(ctx, ref)
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
	return printListed(c.printer, f, shown, execKind(v).name, c.table)
}

// maxCommand is how much of a command a table shows, in characters.
const maxCommand = 40

func (c execCommands) table(execs []api.Exec, wide bool) table {
	t := table{head: []string{"EXEC ID", "COMMAND", "STATUS", "USER", "TTY", "AGE"}}
	if wide {
		t.head = append(t.head, "PID", "CWD", "OUTPUT")
	}
	for _, e := range execs {
		command := commandText(e.Command)
		if letters := []rune(command); !wide && len(letters) > maxCommand {
			command = string(letters[:maxCommand-1]) + "…"
		}
		status := e.State
		switch {
		case e.ExitCode == nil:
		case e.TimedOut:
			status = fmt.Sprintf("timed out (%d)", *e.ExitCode)
		default:
			status = fmt.Sprintf("exited (%d)", *e.ExitCode)
		}
		user := e.User
		if user == "" {
			user = "root"
		}
		cells := []string{e.ID, command, status, user, yesNo(e.TTY != nil), c.age(e.StartedAt)}
		if wide {
			cells = append(cells, strconv.Itoa(e.PID), e.Cwd, strconv.FormatInt(e.OutputBytes, 10))
		}
		t.row(cells...)
	}
	return t
}

// commandText returns a command as a user would type it.
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

// execCommand returns a command that takes a VM and an exec, and calls do with
// them. doing is for errors.
func (c execCommands) execCommand(verb, short, doing string, do func(cmd *cobra.Command, server *client.Client, vmID string, e api.Exec) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " VM EXEC", Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usage(cmd, "%s takes a VM and an exec; %d arguments were given", cmd.CommandPath(), len(args))
			}
			return nil
		},
		ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			server, v, err := c.openVM(cmd.Context(), args[0])
			var e api.Exec
			if err == nil {
				e, err = execKind(v).find(cmd.Context(), server, args[1])
			}
			if err == nil {
				err = do(cmd, server, v.ID, e)
			}
			return withContext(err, fmt.Sprintf("cannot %s %s", doing, args[1]))
		},
	}
}

func (c execCommands) complete(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return vmKind.completeFirst(c.connection)(cmd, args, word)
	}
	k := execKind(api.VM{})
	k.list = func(server *client.Client, ctx context.Context) ([]api.Exec, error) {
		v, err := findVM(ctx, server, args[0])
		if err != nil {
			return nil, err
		}
		return server.ListExecs(ctx, v.ID)
	}
	return k.complete(c.connection)(cmd, args, word)
}

func (c execCommands) attachCommand() *cobra.Command {
	cmd := c.execCommand("attach", "Attach to a command: its output from the beginning, and its stdin", "join",
		func(cmd *cobra.Command, server *client.Client, vmID string, e api.Exec) error {
			return c.attach(cmd.Context(), attachment{interactive: e.State == api.ExecRunning, tty: e.TTY != nil}, func(ctx context.Context) (*client.ExecSession, error) {
				return server.AttachExec(ctx, vmID, e.ID, 0)
			})
		})
	cmd.Annotations = exitsAsGuest()
	cmd.Long = `Attach to a command that was started before: its output, as far as the VM keeps
it, then new output, and stdin, if the command was started with -i. It ends with
the command, and with its exit code.`
	return cmd
}

func (c execCommands) logsCommand() *cobra.Command {
	var follow bool
	cmd := c.execCommand("logs", "Print the output of a command, as far as the VM keeps it", "read the output of",
		func(cmd *cobra.Command, server *client.Client, vmID string, e api.Exec) error {
			log, err := server.ExecLogs(cmd.Context(), vmID, e.ID, follow)
			if err != nil {
				return err
			}
			defer func() { _ = log.Close() }()
			_, err = io.Copy(c.out, log)
			return err
		})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "print new output until the command ends")
	return cmd
}

func (c execCommands) inspectCommand() *cobra.Command {
	return c.execCommand("inspect", "Show all fields of a command, as JSON", "inspect",
		func(cmd *cobra.Command, _ *client.Client, _ string, e api.Exec) error {
			return c.printInspected(cmd, e)
		})
}

func (c execCommands) killCommand() *cobra.Command {
	var signal string
	cmd := c.execCommand("kill", "Send a signal to a command and its children", "signal",
		func(cmd *cobra.Command, server *client.Client, vmID string, e api.Exec) error {
			if err := server.SignalExec(cmd.Context(), vmID, e.ID, signal); err != nil {
				return err
			}
			return c.printLine(api.Done{Status: "ok"}, cmd.Flags().Arg(1))
		})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal` to send, by name or number")
	return cmd
}

func (c execCommands) rmCommand() *cobra.Command {
	return c.execCommand("rm", "Kill a command, if it runs, and delete it and its output", "remove",
		func(cmd *cobra.Command, server *client.Client, vmID string, e api.Exec) error {
			if err := server.DeleteExec(cmd.Context(), vmID, e.ID); err != nil {
				return err
			}
			return c.printLine(removal{Status: "deleted", ID: e.ID, Ref: cmd.Flags().Arg(1)}, cmd.Flags().Arg(1))
		})
}
