# Part of the cluster (see cluster.bash): images for its pods, made from what is on this machine.

# cluster_images: into $LAB/images.
cluster_images() {
  mkdir "$LAB/images" "$LAB/images/.root"
  cluster_image_lab && cluster_image_dns && "$LAB_REPO/scripts/image" >"$LAB/images/underpass.tar"
}

# cluster_pack NAME DIRECTORY [COMMAND...]: the image localhost/NAME:1.
cluster_pack() {
  local name=$1 directory=$2
  shift 2
  "$LAB_REPO/scripts/pack-image" "localhost/$name:1" "$directory" "$@" >"$LAB/images/$name.tar"
}

# busybox, with a web page that says who answers and whom it saw.
cluster_image_lab() {
  local root=$LAB/images/.root/lab applet
  mkdir -p "$root/bin" "$root/tmp" "$root/www/cgi-bin"
  chmod 1777 "$root/tmp"
  cp "$(command -v busybox)" "$root/bin"
  for applet in $(busybox --list); do ln -sf busybox "$root/bin/$applet"; done
  rm -f "$root/bin/busybox" && cp "$(command -v busybox)" "$root/bin"
  # shellcheck disable=SC2016 # expanded in the pod
  printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%%s %%s\\n" "$HOSTNAME" "$REMOTE_ADDR"\n' >"$root/www/cgi-bin/who"
  chmod +x "$root/www/cgi-bin/who"
  printf 'ok\n' >"$root/www/healthz"
  cluster_pack lab "$root" /bin/sleep 86400
}

cluster_image_dns() {
  local tools
  tools=$("$LAB_REPO/tests/tools/build" --where coredns) || return
  mkdir -p "$LAB/images/.root/dns/bin"
  cp "$tools/coredns" "$LAB/images/.root/dns/bin"
  cluster_pack dns "$LAB/images/.root/dns" /bin/coredns
}
