package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Paths of the manual below /usr/share.
const (
	manFile  = "man/man1/" + name + ".1.gz"
	bashFile = "bash-completion/completions/" + name
	zshFile  = "zsh/site-functions/_" + name

	debianZshFile = "zsh/vendor-completions/_" + name
)

// makeManual returns the man page and the completions for shells. The exporter makes them from its flags.
func (r release) makeManual() (map[string][]byte, error) {
	files := map[string][]byte{}
	for file, m := range map[string]struct {
		flag   string
		finish func(string) ([]byte, error)
	}{
		manFile:  {"--help-man", r.manPage},
		bashFile: {"--completion-script-bash", func(script string) ([]byte, error) { return []byte(script), nil }},
		zshFile:  {"--completion-script-zsh", zshCompletion},
	} {
		cmd := exec.Command("go", "run", "-buildvcs=false", "./cmd/"+name, m.flag)
		cmd.Dir, cmd.Stderr = source, os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
		if files[file], err = m.finish(string(out)); err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
	}
	return files, nil
}

// manPage returns a compressed man page with what kingpin's lacks: a header of one line, what man -k looks
// for, and minus signs that can be copied.
func (r release) manPage(page string) ([]byte, error) {
	_, text, ok := strings.Cut(page, ".SH \"SYNOPSIS\"\n.TP\n")
	if !ok {
		return nil, fmt.Errorf("no synopsis in %q", page)
	}
	text = strings.NewReplacer("-", `\-`, "\n\n", "\n").Replace(text)
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(zip, ".TH %s 1 %s \"%s %s\"\n.SH \"NAME\"\n%s \\- %s\n.SH \"SYNOPSIS\"\n%s", strings.ToUpper(name), r.time.Format(time.DateOnly), name, r.version, name, description, text)
	fmt.Fprint(zip, ".SH \"SEE ALSO\"\nThe exporter serves its documents at http://localhost:10149/docs/ and its runbook at http://localhost:10149/runbook.\n")
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// zshCompletion returns kingpin's script without its end, which is for scripts that are sourced: with it, zsh
// completes nothing on the first try.
func zshCompletion(script string) ([]byte, error) {
	function, _, ok := strings.Cut(script, "\nif [[ \"$(basename ")
	if !ok {
		return nil, fmt.Errorf("unexpected end in %q", script)
	}
	return []byte(function), nil
}
