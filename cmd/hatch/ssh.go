package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// userLabel is the label of a VM with the user to log in as.
const userLabel = "hatch.ssh.user"

// sshFlags are the flags of a login.
type sshFlags struct {
	user, identity string
	tty            bool
}

// add adds the flags; otherwise is the user without the flag and the label.
func (f *sshFlags) add(cmd *cobra.Command, otherwise string) {
	cmd.Flags().StringVarP(&f.user, "user", "l", "", "log in as this `user` (default: the label "+userLabel+", else "+otherwise+")")
	cmd.Flags().StringVarP(&f.identity, "identity", "i", "", "private key `file`, for ssh")
	cmd.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
}

// sshCommands are hatch ssh and ssh-config.
type sshCommands struct {
	*printer
	*connection
}

func (c sshCommands) ssh() *cobra.Command {
	f := &sshFlags{}
	cmd := &cobra.Command{
		Use: "ssh [flags] VM [COMMAND...]", Annotations: exitsAsGuest(), Short: "Log in to a VM, or run a command in it", Args: someArgs("VM"),
		Long: `Log in to a VM, or run a command in it, with this machine's ssh, and exit with
its code. A single argument is a line for the guest's shell; several are passed
on unchanged.

A login needs no key in the VM: hatchd signs a key that is made for this login, and
says what the VM's host key is. That needs OpenSSH in the image, and the scope
exec:write of the API key.

With -i, or if the guest accepts no certificate, ssh uses your own keys, of which
the VM must have one (--ssh-key of hatch create). Its host key is then accepted at
the first login and stored for this VM alone, below ~/.local/state/hatch; hatch rm
deletes it. hatch exec needs no login.`,
		Example:           "  hatch ssh web\n  hatch ssh web -- journalctl -n 20\n  hatch ssh web 'ps aux | grep sshd'",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := sshUser(api.VM{}, f.user); err != nil {
				return fmt.Errorf("cannot log in to %s: %w", args[0], err)
			}
			server, v, err := c.openVM(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("cannot log in to %s: %w", args[0], err)
			}
			return c.login(cmd.Context(), server, v, f, withoutDash(args[1:]))
		},
	}
	f.add(cmd, "root in img_minimal and debian elsewhere")
	cmd.Flags().SetInterspersed(false) // flags after the VM belong to the command
	return cmd
}

// withoutDash drops an optional -- between VM and command.
func withoutDash(command []string) []string {
	if len(command) > 0 && command[0] == "--" {
		return command[1:]
	}
	return command
}

// login runs the ssh of this machine and returns its exit code.
func (c sshCommands) login(ctx context.Context, server *client.Client, v api.VM, f *sshFlags, command []string) error {
	if err := checkReachable(v); err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	user, err := sshUser(v, f.user)
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return hint(fmt.Errorf("cannot log in to %s: ssh is not installed", displayName(v)), "apt-get install openssh-client")
	}
	end := c.progress("waiting for SSH in " + displayName(v))
	_, err = server.WaitVM(ctx, v.ID, "ssh", sshTimeout)
	end()
	if client.IsTimeout(err) {
		err = hint(fmt.Errorf("no SSH server answered within %s", sshTimeout),
			"hatch logs %[1]s shows whether it is still booting; an image without an SSH server, such as minimal, has hatch exec -it %[1]s sh", displayName(v))
	}
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	options, end, err := c.loginOptions(ctx, server, v, user, f.identity)
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	defer end()
	args, err := c.sshArgs(v, f, user, options, command)
	if err != nil {
		return fmt.Errorf("cannot log in to %s: %w", displayName(v), err)
	}
	err = passThrough(ctx, c.streams, program, args)
	if code, ok := errors.AsType[exitError](err); ok && code == exitSSH {
		c.explainRefusal(ctx, server, v)
	}
	return err
}

// exitSSH is the exit code of ssh for errors of its own, as a refused login.
const exitSSH = 255

// explainRefusal says why the guest has no key of the user's, if that can be known.
func (c sshCommands) explainRefusal(ctx context.Context, server *client.Client, v api.VM) {
	v, err := server.GetVM(ctx, v.ID) // lists have no user data
	if err != nil {
		return
	}
	name := displayName(v)
	switch users, dropped := usersWithoutDefault(v.UserData); {
	case dropped && len(users) > 0:
		c.report(hint(fmt.Errorf("the user data of %s has users: without default, so that cloud-init created no other user and dropped the SSH keys given to hatch", name),
			"log in as one of them, with a key of theirs: hatch ssh -l %s %s; or put - default first into users: of a new VM; hatch exec -it %s sh needs no login", users[0], name, name))
	case dropped:
		c.report(hint(fmt.Errorf("the user data of %s has an empty users:, so that cloud-init created no user and dropped the SSH keys given to hatch", name),
			"put - default into users: of a new VM; hatch exec -it %s sh needs no login", name))
	case len(v.SSHAuthorizedKeys) == 0 && v.UserData == "":
		c.report(hint(fmt.Errorf("%s was created without an SSH key", name), "hatch exec -it %s sh needs none; hatch create --ssh-key default gives a new VM yours", name))
	}
}

// usersWithoutDefault returns the users that a cloud-config names, and whether
// cloud-init creates only them. What it cannot read has no such list.
func usersWithoutDefault(userData string) (users []string, dropped bool) {
	var config struct {
		Users yaml.Node `yaml:"users"`
	}
	if !strings.HasPrefix(userData, "#cloud-config") || yaml.Unmarshal([]byte(userData), &config) != nil || config.Users.IsZero() || config.Users.Tag == "!!null" {
		return nil, false
	}
	entries := []*yaml.Node{&config.Users}
	if config.Users.Kind == yaml.SequenceNode {
		entries = config.Users.Content
	}
	for _, entry := range entries {
		var user struct {
			Name string `yaml:"name"`
		}
		var names string
		if entry.Decode(&names) != nil && entry.Decode(&user) == nil {
			names = user.Name
		}
		for name := range strings.FieldsFuncSeq(names, func(r rune) bool { return r == ',' || r == ' ' }) {
			users = append(users, name)
		}
	}
	return users, !slices.Contains(users, "default")
}

// sshTimeout bounds the wait for the SSH server. A booted guest answers at once.
const sshTimeout = time.Minute

// passThrough runs a program on the same streams and returns its exit code.
func passThrough(ctx context.Context, s streams, program string, args []string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.in, s.out, s.err
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

func checkReachable(v api.VM) error {
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

// sshUser returns the user to log in as. The label comes from the VM's owner and
// is checked before it becomes part of a command line.
func sshUser(v api.VM, asked string) (string, error) {
	user := cmp.Or(asked, v.Labels[userLabel])
	if user == "" && v.ImageID == "img_minimal" {
		user = "root"
	}
	if user == "" {
		user = "debian"
	}
	if !userForm.MatchString(user) {
		return "", fmt.Errorf("%q is not a valid user name", user)
	}
	return user, nil
}

// loginOptions returns the options of a login with a certificate or, with an identity or
// without a guest that accepts certificates, with the user's own keys. end removes files
// that they name.
func (c sshCommands) loginOptions(ctx context.Context, server *client.Client, v api.VM, user, identity string) (options []string, end func(), err error) {
	if identity == "" {
		login, end, err := temporaryLogin()
		if err != nil {
			return nil, nil, err
		}
		err = login.obtain(ctx, server, v, user, false)
		if err == nil {
			return login.options(), end, nil
		}
		end()
		note, ok := withoutCertificate(err)
		if !ok {
			return nil, nil, err
		}
		c.note(note)
	}
	options, err = c.ownKeyOptions(v.ID)
	return options, func() {}, err
}

// note writes a line to stderr that is no error.
func (c sshCommands) note(note error) { fmt.Fprintf(c.err, "note: %s\n", clean(note.Error())) }

// ownKeyOptions are those of a login with the user's own keys.
func (c sshCommands) ownKeyOptions(id string) ([]string, error) {
	keyFile, err := knownHosts{c.env}.file(id)
	if err != nil {
		return nil, err
	}
	return []string{"StrictHostKeyChecking=accept-new", `UserKnownHostsFile="` + keyFile + `"`}, nil
}

func (c sshCommands) sshArgs(v api.VM, f *sshFlags, user string, options, command []string) ([]string, error) {
	host, err := c.host()
	if err != nil {
		return nil, err
	}
	args := []string{"-p", strconv.Itoa(v.SSHPort), "-l", user}
	for _, o := range append(options, sshOptions(v.ID)...) {
		args = append(args, "-o", o)
	}
	if f.identity != "" {
		args = append(args, "-i", f.identity)
	}
	if f.tty {
		args = append(args, "-t")
	}
	args = append(args, "--", host)
	if len(command) == 1 { // a line for the guest's shell
		return append(args, command...), nil
	}
	for _, word := range command {
		args = append(args, quote(word))
	}
	return args, nil
}

// sshOptions separate a VM's host key from those of other VMs that have, or had,
// the same address and port.
func sshOptions(id string) []string {
	return []string{
		"HostKeyAlias=" + id,
		"GlobalKnownHostsFile=/dev/null",
		"CheckHostIP=no",
		"ConnectTimeout=30",
		"ServerAliveInterval=15",
		"LogLevel=ERROR",
	}
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// quote quotes a word for a shell.
func quote(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// knownHosts stores the SSH host key of each VM in a file.
type knownHosts struct {
	getenv func(string) string
}

func (k knownHosts) dir() (string, error) {
	dir := userDir(k.getenv, "XDG_STATE_HOME", filepath.Join(".local", "state"))
	if dir == "" {
		return "", errors.New("there is no directory for its host key: HOME is not set")
	}
	if strings.ContainsAny(dir, "\"\n") {
		return "", fmt.Errorf("ssh cannot use a file below %q", dir)
	}
	return filepath.Join(dir, "hatch", "known_hosts"), nil
}

// file returns the path for a VM's host key. Its directory exists.
func (k knownHosts) file(id string) (string, error) {
	dir, err := k.dir()
	if err != nil {
		return "", err
	}
	if !wholeVMID.MatchString(id) {
		return "", fmt.Errorf("the server sent an invalid VM id: %q", id)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cannot store its host key: %w", err)
	}
	return filepath.Join(dir, id), nil
}

// login returns the directory of a VM's certificate.
func (k knownHosts) login(id string) (string, error) {
	file, err := k.file(id)
	return file + ".login", err
}

// forget deletes the host key and the certificate of a deleted VM, if there are any.
func (k knownHosts) forget(id string) {
	if dir, err := k.dir(); err == nil && wholeVMID.MatchString(id) {
		_ = os.Remove(filepath.Join(dir, id))
		_ = os.RemoveAll(filepath.Join(dir, id+".login"))
	}
}
