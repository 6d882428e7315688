{
  description = "nixpkgs' attribute names, served out of Debian's own archive";

  # `fetch DEST` puts this flake beside the packages it serves; it has no inputs, so it evaluates
  # and builds without a network. The packages are unpacked by the host's dpkg-deb and tar, so the
  # host has to be Debian (or kin), and Nix's `sandbox` setting `relaxed` or `false`.
  outputs = { self }: let
    system = "x86_64-linux";
    files = builtins.fromJSON (builtins.readFile ./packages.json);

    unique = list: builtins.attrNames
      (builtins.listToAttrs (map (name: { inherit name; value = null; }) list));

    # One directory out of .deb files and of other derivations.
    unpack = { name, debs, others ? [ ] }: derivation {
      inherit name system debs others;
      builder = "/bin/sh";
      args = [ "${./unpack.sh}" ];
      PATH = "/usr/bin:/bin:/usr/sbin:/sbin";
      pool = "${self}/pool";
      # Built by the host's own tools: with `sandbox = relaxed`, outside of it.
      __noChroot = true;
    } // { inherit debs; };

    packages = builtins.mapAttrs
      (name: debs: unpack { inherit name; debs = unique debs; }) files;

    # As in nixpkgs, for `name` and `paths`: the packages' union. Debian's packages are unpacked
    # together rather than linked, since they look for each other under /usr.
    buildEnv = { name, paths, ... }: unpack {
      inherit name;
      debs = unique (builtins.concatMap (p: p.debs or [ ]) paths);
      others = builtins.filter (p: !(p ? debs)) paths;
    };
  in {
    legacyPackages.${system} = packages // { inherit buildEnv; symlinkJoin = buildEnv; };
  };
}
