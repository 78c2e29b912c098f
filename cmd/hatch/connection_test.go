package main

import (
	"path/filepath"
	"testing"
)

func TestWhereTheKeyComesFrom(t *testing.T) {
	home, data := t.TempDir(), t.TempDir()
	explicit := filepath.Join(t.TempDir(), "explicit")
	writeFile(t, explicit, "explicit\n")
	writeFile(t, filepath.Join(data, "admin.key"), "admin\n")
	writeFile(t, filepath.Join(home, ".config/hatch/key"), "own\n")
	empty := filepath.Join(home, "empty")
	writeFile(t, empty, "\n")

	for name, tc := range map[string]struct {
		flag, url string
		env       map[string]string
		want      string
		fails     bool
	}{
		"flag first":          {flag: explicit, env: map[string]string{"HATCH_API_KEY": "env"}, want: "explicit"},
		"environment":         {env: map[string]string{"HATCH_API_KEY": "env\n", "HATCH_DATA_DIR": data}, want: "env"},
		"data directory":      {env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "admin"},
		"not for other hosts": {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data}, want: ""},
		"own, for any host":   {url: "https://hatch.example", env: map[string]string{"HATCH_DATA_DIR": data, "HOME": home}, want: "own"},
		"loopback address":    {url: "http://[::1]:8080", env: map[string]string{"HATCH_DATA_DIR": data}, want: "admin"},
		"none":                {env: map[string]string{"HATCH_DATA_DIR": home}, want: ""},
		"an empty file":       {flag: empty, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &connection{keyFile: tc.flag, url: tc.url, getenv: func(n string) string { return tc.env[n] }}
			got, err := c.key()
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
