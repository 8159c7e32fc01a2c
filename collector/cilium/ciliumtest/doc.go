// Package ciliumtest has Cilium's real datapath allocate ports in tests: the C code of its module, compiled for one program that translates one
// packet, without an agent.
package ciliumtest
