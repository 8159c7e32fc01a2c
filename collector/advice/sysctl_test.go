package advice

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ephemeral_port_exporter/collector/internal/portset"
	"ephemeral_port_exporter/collector/pool"
)

// fakeSysctl keeps values in files. It fails to set the name in $REFUSE.
const fakeSysctl = `#!/bin/sh
case $1 in
-n) [ "$REFUSE" != "-n" ] && cat "$DIR/$2" ;;
-w)
	shift
	for setting; do
		name=${setting%%=*}
		if [ "$name" = "$REFUSE" ]; then failed=1; else echo "${setting#*=}" >"$DIR/$name"; fi
	done
	exit ${failed:-0} ;;
esac
`

// TestCommandsAtomic has each of the sysctls of a command refuse its value: then the command changes nothing, and fails.
// Else it changes all, and the undo restores all. What was reserved meanwhile stays reserved.
func TestCommandsAtomic(t *testing.T) {
	var further portset.Map
	further.Add(8080)
	reserved, ok := reserve(pool.Settings{ReservedPorts: []pool.PortRange{{Low: 53, High: 53}}}, &further)
	if !ok {
		t.Fatal("not reserved")
	}
	a, b := change{name: "a", before: `"1 2"`, then: `"3 4"`}, change{name: "b", before: "", then: "6"}
	for name, changes := range map[string][]change{"one": {a}, "two": {b, a}, "three": {a, b, {name: "c", before: "7", then: "8"}}, "reserved": {reserved}, "reserved and another": {reserved, a}} {
		command, undo := commands(changes...)
		for i := range len(changes) + 1 {
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) {
				dir := t.TempDir()
				write := func(name, content string) {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				check := func(when string, want map[string]string) {
					t.Helper()
					for name, value := range want {
						if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != value+"\n" {
							t.Errorf("%s, %s is %q, want %q: %v", when, name, got, value, err)
						}
					}
				}
				run := func(line, refuse string) error {
					cmd := exec.Command("sh", "-c", line)
					cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "DIR="+dir, "REFUSE="+refuse)
					return cmd.Run()
				}
				write("sysctl", fakeSysctl)
				before := map[string]string{"a": "1 2", "b": "", "c": "7", reservedPorts: "53,99"}
				for name, value := range before {
					write(name, value+"\n")
				}
				if i == 0 && changes[0].adds {
					if err := run(command, "-n"); err == nil {
						t.Errorf("%s succeeds although it cannot read", command)
					}
					check("unread", before)
				}
				if i < len(changes) {
					if err := run(command, changes[i].name); err == nil {
						t.Errorf("%s succeeds while %s refuses", command, changes[i].name)
					}
					check("refused", before)
					return
				}
				if err := run(command, ""); err != nil {
					t.Error(err)
				}
				after := map[string]string{"a": "3 4", "b": "6", "c": "8", reservedPorts: "8080,53,99"}
				restored := map[string]string{"a": "1 2", "b": "", "c": "7", reservedPorts: "53"}
				changed, undone := map[string]string{}, map[string]string{}
				for _, c := range changes {
					changed[c.name], undone[c.name] = after[c.name], restored[c.name]
				}
				check(command, changed)
				if err := run(undo, ""); err != nil {
					t.Error(err)
				}
				check(undo, undone)
			})
		}
	}
}
