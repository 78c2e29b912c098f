package account

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const (
	passwd = `# a comment
root:x:0:0:root:/root:/bin/bash
app:x:1000:1001:An app,,,:/srv/app:/bin/zsh
odd:x:one:1001::/:/bin/sh
relative:x:5:5::home:sh
77:x:1077:1077::/:/bin/sh
`
	group = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\ndocker:x:998:app\nodd:x:x:app\n"
)

func image(t *testing.T, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFind(t *testing.T) {
	root := image(t, passwd, group)
	app := Account{Name: "app", UID: 1000, GID: 1001, Groups: []uint32{10, 998}, Home: "/srv/app", Shell: "/bin/zsh"}
	admin := Account{Name: "root", Groups: []uint32{10}, Home: "/root", Shell: "/bin/bash"}
	other := app
	other.GID, other.Groups = 998, nil
	for spec, want := range map[string]Account{
		"": admin, "root": admin, "0": admin,
		"app": app, "1000": app,
		"app:docker": other, "1000:998": other,
		"77":       {Name: "77", UID: 1077, GID: 1077, Home: "/", Shell: "/bin/sh"},
		"4242":     {Name: "4242", UID: 4242, GID: 4242, Home: "/", Shell: "/bin/sh"},
		"4242:7":   {Name: "4242", UID: 4242, GID: 7, Home: "/", Shell: "/bin/sh"},
		"relative": {Name: "relative", UID: 5, GID: 5, Home: "/", Shell: "/bin/sh"},
	} {
		if got, err := Find(root, spec); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", spec, got, err, want)
		}
	}
}

func TestErrorsNameTheUnknownUserOrGroup(t *testing.T) {
	root := image(t, passwd, group)
	for spec, named := range map[string]string{
		"bob": `user "bob"`, "app:staff": `group "staff"`, "app:": `group ""`, ":wheel": `":wheel"`,
		"odd": `user "odd"`, "-1": `user "-1"`, "4294967295": `user "4294967295"`, "4294967296": "user", "app:docker:x": `group "docker:x"`,
	} {
		if a, err := Find(root, spec); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%q: %+v, %v, want an error that names %s", spec, a, err, named)
		}
	}
}

func TestImageWithoutAccountsHasRoot(t *testing.T) {
	if a, err := Find(t.TempDir(), ""); err != nil || a.Name != "root" || a.UID != 0 || a.Home != "/" {
		t.Errorf("got %+v, %v", a, err)
	}
}

func FuzzFind(f *testing.F) {
	f.Add(passwd, group, "app:wheel")
	f.Add("a:::::::", "a:::a", "a")
	f.Add("::0:0:tr/:oot:", group, "") // an entry without a name
	f.Add(passwd, ":x:5:", "app:")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		a, err := Find(image(t, passwd, group), spec)
		if err == nil && (!filepath.IsAbs(a.Home) || !filepath.IsAbs(a.Shell) || a.Name == "") {
			t.Errorf("got %+v", a)
		}
	})
}
