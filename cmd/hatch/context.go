package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/cmd/hatch/internal/contexts"
)

// contextCommands are hatch login, hatch logout and hatch context.
type contextCommands struct {
	*printer
	*connection
}

// loginFlags are those of hatch login.
type loginFlags struct{ name, ca, cert, key string }

func (c contextCommands) login() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use: "login URL", Short: "Save a server and an API key, and use them from now on", Args: oneArg("URL"),
		Long: `Save a server and an API key as a context, and use it from now on. The key is
asked for on the terminal, or read from stdin or --key-file. It is tried first,
and kept in a file that only you can read. The files of certificates are not
copied.`,
		Example: "  hatch login https://hatch.example.org\n  hatch login --name prod --ca ca.pem https://10.0.0.5:8080 <prod.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			saved, err := f.context(args[0])
			if err != nil {
				return usageError{err}
			}
			return c.save(cmd.Context(), saved)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "the context's `name` (default: that of the host)")
	flags.StringVar(&f.ca, "ca", "", "trust a server whose certificate is signed with one in this `file` (PEM)")
	flags.StringVar(&f.cert, "cert", "", "show the server the client certificate in this `file` (PEM)")
	flags.StringVar(&f.key, "cert-key", "", "`file` of its key (PEM)")
	return cmd
}

// context returns what is to be saved, without the API key.
func (f loginFlags) context(address string) (contexts.Context, error) {
	saved := contexts.Context{Name: f.name, URL: strings.TrimRight(address, "/")}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return saved, fmt.Errorf("%q is not the address of a server: want https://HOST", address)
	}
	if saved.Name == "" {
		saved.Name = strings.ReplaceAll(u.Hostname(), ":", "-")
	}
	if err := contexts.CheckName(saved.Name); err != nil {
		return saved, err
	}
	if (f.cert == "") != (f.key == "") {
		return saved, errors.New("--cert and --cert-key need each other")
	}
	for file, into := range map[string]*string{f.ca: &saved.CAFile, f.cert: &saved.CertFile, f.key: &saved.KeyFile} {
		if file == "" {
			continue
		}
		if *into, err = filepath.Abs(file); err != nil {
			return saved, err
		}
	}
	return saved, nil
}

// save asks for the key, tries it, and saves it.
func (c contextCommands) save(ctx context.Context, saved contexts.Context) error {
	path, all, err := c.file()
	if err != nil {
		return err
	}
	if old, err := all.Get(saved.Name); err == nil && old.URL != saved.URL {
		return hint(fmt.Errorf("the context %s is of %s", saved.Name, old.URL), "give another name with --name, or remove it: hatch logout %s", saved.Name)
	}
	if strings.HasPrefix(saved.URL, "http://") && !isLoopback(saved.URL) {
		fmt.Fprintf(c.err, "warning: the key goes to %s without TLS, and can be read on the way\n", clean(saved.URL))
	}
	if saved.Key, err = c.askKey(ctx, saved.URL); err != nil {
		return err
	}
	server, err := newClient(target{url: saved.URL, context: saved}, saved.Key)
	if err != nil {
		return err
	}
	if _, err := server.Me(ctx); err != nil && !client.IsNotFound(err) { // of a hatchd without users, for a valid key
		return fmt.Errorf("cannot log in: %w", err)
	}
	all.Put(saved)
	if err := all.Save(path); err != nil {
		return err
	}
	fmt.Fprintf(c.err, "logged in to %s; hatch uses it from now on, as context %s\n", clean(saved.URL), saved.Name)
	return nil
}

// askKey reads the API key from --key-file, the terminal or stdin.
func (c contextCommands) askKey(ctx context.Context, server string) (string, error) {
	if c.keyFile != "" {
		return readKey(c.keyFile)
	}
	if c.inTTY {
		fmt.Fprintf(c.err, "API key for %s: ", clean(server))
		typed, err := c.secret(ctx)
		fmt.Fprintln(c.err)
		if err != nil {
			return "", fmt.Errorf("cannot read the API key: %w", err)
		}
		return oneKey("the line that was typed", typed)
	}
	text, err := c.readInput("-")
	if err != nil {
		return "", fmt.Errorf("cannot read the API key: %w", err)
	}
	return oneKey("stdin", text)
}

func (c contextCommands) logout() *cobra.Command {
	var everything bool
	cmd := &cobra.Command{
		Use: "logout [CONTEXT]", Short: "Forget a saved server and its API key, by default the current one", Args: upToOneArg("context"),
		Long:              "Forget a saved server and its API key. The key stays valid: hatch key rm deletes it.",
		ValidArgsFunction: c.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if everything {
				return c.removeAll()
			}
			_, all, err := c.file()
			if err != nil {
				return err
			}
			names := args
			if len(names) == 0 && all.Current != "" {
				names = []string{all.Current}
			}
			if len(names) == 0 {
				return hint(errors.New("there is no current context"), "name one of hatch context ls")
			}
			return c.remove(names)
		},
	}
	cmd.Flags().BoolVar(&everything, "all", false, "forget all of them")
	return cmd
}

func (c contextCommands) removeAll() error {
	dir := userDir(c.getenv, "XDG_CONFIG_HOME", ".config")
	if err := os.Remove(contexts.Path(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the contexts: %w", err)
	}
	return nil
}

func (c contextCommands) remove(names []string) error {
	path, all, err := c.file()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := all.Remove(name); err != nil {
			return absent{"context", name}
		}
	}
	if err := all.Save(path); err != nil {
		return err
	}
	for _, name := range names {
		fmt.Fprintf(c.err, "removed %s\n", name)
	}
	return nil
}

// file returns the saved contexts, and where they are.
func (c contextCommands) file() (string, contexts.File, error) {
	dir := userDir(c.getenv, "XDG_CONFIG_HOME", ".config")
	if dir == "" {
		return "", contexts.File{}, errors.New("cannot find your directory for configurations: HOME is not set")
	}
	all, err := c.contexts()
	return contexts.Path(dir), all, err
}

// shownContext is a context as it is printed: without its key.
type shownContext struct {
	Name     string `json:"name"`
	URL      string `json:"url"`
	Current  bool   `json:"current"`
	HasKey   bool   `json:"has_key"`
	CAFile   string `json:"ca_file,omitempty"`
	CertFile string `json:"client_cert,omitempty"`
}

func (c contextCommands) command() *cobra.Command {
	return noun("context", "Manage the servers that hatch login has saved", c.ls(), c.use(), c.show(), c.rm())
}

func (c contextCommands) ls() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the saved servers", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, all, err := c.file()
			if err != nil {
				return err
			}
			shown := []shownContext{}
			for _, saved := range all.Contexts {
				shown = append(shown, showContext(saved, all.Current))
			}
			return printList(c.printer, shown, func(bool) table {
				t := table{head: []string{"NAME", "SERVER", "CURRENT"}}
				for _, s := range shown {
					t.row(s.Name, s.URL, yesNo(s.Current))
				}
				return t
			})
		},
	}
}

func showContext(saved contexts.Context, current string) shownContext {
	return shownContext{saved.Name, saved.URL, saved.Name == current, saved.Key != "", saved.CAFile, saved.CertFile}
}

func (c contextCommands) use() *cobra.Command {
	return &cobra.Command{
		Use: "use CONTEXT", Short: "Use a saved server from now on; local is the one on this machine", Args: oneArg("context"),
		ValidArgsFunction: c.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			path, all, err := c.file()
			if err != nil {
				return err
			}
			all.Current = ""
			if args[0] != contexts.Local {
				if _, err := all.Get(args[0]); err != nil {
					return absent{"context", args[0]}
				}
				all.Current = args[0]
			}
			return all.Save(path)
		},
	}
}

func (c contextCommands) show() *cobra.Command {
	return &cobra.Command{
		Use: "show [CONTEXT]", Short: "Show a saved server, by default the one that commands call; never its key", Args: upToOneArg("context"),
		ValidArgsFunction: c.complete,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				c.context = args[0]
			}
			t, err := c.target()
			if err != nil {
				return err
			}
			all, err := c.contexts()
			if err != nil {
				return err
			}
			shown := showContext(t.context, all.Current)
			if t.context.Name == "" {
				shown = shownContext{Name: contexts.Local, URL: t.url, Current: all.Current == ""}
			}
			return c.printOne(shown, func() {
				w := table{head: []string{"WHAT", "VALUE"}}
				w.row("name", shown.Name)
				w.row("server", shown.URL)
				w.row("chosen by", t.via)
				w.row("key", map[bool]string{true: "saved", false: ""}[shown.HasKey])
				w.row("CA", shown.CAFile)
				w.row("client certificate", shown.CertFile)
				_ = w.write(c.out, c.colour())
			})
		},
	}
}

func (c contextCommands) rm() *cobra.Command {
	return &cobra.Command{
		Use: "rm CONTEXT...", Aliases: []string{"remove"}, Short: "Forget saved servers and their API keys, as hatch logout does", Args: someArgs("context"),
		ValidArgsFunction: c.complete,
		RunE:              func(_ *cobra.Command, args []string) error { return c.remove(args) },
	}
}

func (c contextCommands) complete(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	all, err := c.contexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := []string{contexts.Local}
	for _, saved := range all.Contexts {
		names = append(names, saved.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
