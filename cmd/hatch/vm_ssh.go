package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// userLabel is the label of a VM that says as whom to log in.
const userLabel = "hatch.ssh.user"

// sshFlags say how to log in.
type sshFlags struct {
	user, identity string
	tty            bool
}

func (f *sshFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.user, "user", "l", "", "log in as this `user` (else the label "+userLabel+", else root in img_minimal and debian elsewhere)")
	cmd.Flags().StringVarP(&f.identity, "identity", "i", "", "private key `file`, for ssh")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
}

func (c *cli) sshCommand() *cobra.Command {
	f := &sshFlags{}
	cmd := &cobra.Command{
		Use: "ssh [flags] VM [COMMAND...]", Short: "Log in to a VM, or run a command in it", Args: someArgs("VM"),
		Long: `Log in to a VM, or run a command in it, with this machine's ssh, and exit with
its code. One argument is a line for the guest's shell; several are passed on
as they are.

The VM's host key is learnt at the first login and kept for this VM alone,
below ~/.local/state/hatch; hatch rm forgets it.`,
		Example:           "  hatch ssh web\n  hatch ssh web -- journalctl -n 20\n  hatch ssh web 'ps aux | grep sshd'",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			v, err := findVM(cmd.Context(), server, args[0])
			if err != nil {
				return fmt.Errorf("cannot log in to %s: %w", args[0], err)
			}
			return c.ssh(cmd.Context(), v, f, withoutDash(args[1:]))
		},
	}
	f.add(cmd)
	cmd.Flags().SetInterspersed(false) // what follows the VM is the guest's
	return cmd
}

// withoutDash takes the -- off that may stand between VM and command.
func withoutDash(command []string) []string {
	if len(command) > 0 && command[0] == "--" {
		return command[1:]
	}
	return command
}

// ssh runs the host's ssh and passes its exit code on.
func (c *cli) ssh(ctx context.Context, v api.VM, f *sshFlags, command []string) error {
	if err := reachable(v); err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	args, err := c.sshArgs(v, f, command)
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return hint(errors.New("cannot log in: ssh is not installed"), "apt-get install openssh-client")
	}
	if err := c.awaitSSH(ctx, v); err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	return c.passThrough(ctx, program, args)
}

// sshPatience is how long a guest may take to answer on its SSH port; one that
// has booted answers at once.
const sshPatience = time.Minute

// awaitSSH waits until the guest's SSH server greets.
func (c *cli) awaitSSH(ctx context.Context, v api.VM) error {
	server, err := c.client()
	if err != nil {
		return err
	}
	done := c.progress("waiting for SSH in " + displayName(v))
	_, err = server.WaitVM(ctx, v.ID, "ssh", sshPatience)
	done()
	if client.IsTimeout(err) {
		return hint(fmt.Errorf("no SSH server answered within %s", sshPatience),
			"hatch logs %s shows whether it is still booting; an image without an SSH server, such as minimal, has hatch console %s", displayName(v), displayName(v))
	}
	return err
}

// passThrough runs a program on our own streams and ends with its exit code.
func (c *cli) passThrough(ctx context.Context, program string, args []string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.in, c.out, c.err
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exitFrom(exit.ExitCode())
	case err != nil:
		return fmt.Errorf("cannot run %s: %w", filepath.Base(program), err)
	}
	return nil
}

func exitFrom(code int) error {
	if code == 0 {
		return nil
	}
	return exitError(code)
}

func reachable(v api.VM) error {
	switch {
	case v.SSHPort == 0:
		return hint(errors.New("it has no network"), "hatch console %s", displayName(v))
	case v.State == api.StatePaused:
		return hint(errors.New("it is paused"), "hatch resume %s", displayName(v))
	case v.State == api.StateStopped, v.State == api.StateError:
		return hint(fmt.Errorf("its state is %s", v.State), "hatch start %s", displayName(v))
	}
	return nil
}

var userForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)

// sshUser says as whom to log in. The label is the guest owner's word, not
// ours: it is looked at before it gets near a command line.
func sshUser(v api.VM, asked string) (string, error) {
	user := asked
	if user == "" {
		user = v.Labels[userLabel]
	}
	if user == "" && v.ImageID == "img_minimal" {
		user = "root"
	}
	if user == "" {
		user = "debian"
	}
	if !userForm.MatchString(user) {
		return "", fmt.Errorf("%q is no user name", user)
	}
	return user, nil
}

func (c *cli) sshArgs(v api.VM, f *sshFlags, command []string) ([]string, error) {
	user, err := sshUser(v, f.user)
	if err != nil {
		return nil, err
	}
	host, err := c.host()
	if err != nil {
		return nil, err
	}
	known, err := c.knownHosts(v.ID)
	if err != nil {
		return nil, err
	}
	args := []string{"-p", strconv.Itoa(v.SSHPort), "-l", user}
	for _, o := range sshOptions(v.ID, known) {
		args = append(args, "-o", o)
	}
	if f.identity != "" {
		args = append(args, "-i", f.identity)
	}
	if f.tty {
		args = append(args, "-t")
	}
	args = append(args, "--", host)
	return append(args, shellWords(command)...), nil
}

// sshOptions keep a VM's host key apart from those of other VMs that have, or
// once had, the same address and port.
func sshOptions(id, knownHosts string) []string {
	return []string{
		"HostKeyAlias=" + id,
		"StrictHostKeyChecking=accept-new",
		`UserKnownHostsFile="` + knownHosts + `"`,
		"GlobalKnownHostsFile=/dev/null",
		"CheckHostIP=no",
		"ConnectTimeout=30",
		"ServerAliveInterval=15",
		"LogLevel=ERROR",
	}
}

// shellWords makes the guest's shell see the words of a command as they are.
// A single one is taken as a line for the shell.
func shellWords(command []string) []string {
	if len(command) < 2 {
		return command
	}
	quoted := make([]string, len(command))
	for i, word := range command {
		quoted[i] = quote(word)
	}
	return quoted
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// hostsDir is where the host keys of VMs are kept.
func (c *cli) hostsDir() (string, error) {
	dir := c.userDir("XDG_STATE_HOME", filepath.Join(".local", "state"))
	if dir == "" {
		return "", errors.New("there is no place to keep its host key: HOME is not set")
	}
	if strings.ContainsAny(dir, "\"\n") {
		return "", fmt.Errorf("ssh cannot use a file below %q", dir)
	}
	return filepath.Join(dir, "hatch", "known_hosts"), nil
}

// knownHosts is the file of a VM's host key. Its directory exists.
func (c *cli) knownHosts(id string) (string, error) {
	dir, err := c.hostsDir()
	if err != nil {
		return "", err
	}
	if !wholeVMID.MatchString(id) {
		return "", fmt.Errorf("the server gave an id that is none: %q", id)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cannot keep its host key: %w", err)
	}
	return filepath.Join(dir, id), nil
}

// forgetHost drops the host key of a VM that is no more.
func (c *cli) forgetHost(id string) {
	if dir, err := c.hostsDir(); err == nil && wholeVMID.MatchString(id) {
		_ = os.Remove(filepath.Join(dir, id)) // it may never have been there
	}
}

func (c *cli) sshConfigCommand() *cobra.Command {
	f := &sshFlags{}
	cmd := &cobra.Command{
		Use: "ssh-config [VM...]", Short: "Print ssh configuration for VMs, all by default",
		Example:           "  hatch ssh-config > ~/.ssh/config.d/hatch",
		ValidArgsFunction: c.completeVMs,
		RunE: func(cmd *cobra.Command, refs []string) error {
			server, err := c.client()
			if err != nil {
				return err
			}
			vms, err := reachableVMs(cmd.Context(), server, refs)
			if err != nil {
				return fmt.Errorf("cannot print ssh configuration: %w", err)
			}
			return c.printSSHConfig(vms, f)
		},
	}
	cmd.Flags().StringVarP(&f.user, "user", "l", "", "log in as this `user`")
	return cmd
}

func reachableVMs(ctx context.Context, server *client.Client, refs []string) ([]api.VM, error) {
	all, err := allVMs(ctx, server, client.ListOptions{})
	if err != nil {
		return nil, err
	}
	var vms []api.VM
	if len(refs) == 0 {
		for _, v := range all {
			if v.SSHPort != 0 {
				vms = append(vms, v)
			}
		}
		return vms, nil
	}
	for _, ref := range refs {
		v, err := pickFrom("VM", ref, all, vmName)
		if err != nil {
			return nil, orList(err, "hatch ls")
		}
		if v.SSHPort == 0 {
			return nil, fmt.Errorf("%s has no network", displayName(v))
		}
		vms = append(vms, v)
	}
	return vms, nil
}

var hostAlias = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func (c *cli) printSSHConfig(vms []api.VM, f *sshFlags) error {
	host, err := c.host()
	if err != nil {
		return err
	}
	for _, v := range vms {
		user, err := sshUser(v, f.user)
		if err != nil {
			return fmt.Errorf("%s: %w", v.ID, err)
		}
		known, err := c.knownHosts(v.ID)
		if err != nil {
			return err
		}
		names := v.ID
		if hostAlias.MatchString(v.Name) {
			names = v.Name + " " + v.ID
		}
		fmt.Fprintf(c.out, "Host %s\n  HostName %s\n  Port %d\n  User %s\n", names, host, v.SSHPort, user)
		for _, o := range sshOptions(v.ID, known) {
			fmt.Fprintf(c.out, "  %s\n", strings.Replace(o, "=", " ", 1))
		}
	}
	return nil
}
