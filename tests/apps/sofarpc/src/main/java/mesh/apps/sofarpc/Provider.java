package mesh.apps.sofarpc;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import com.alipay.sofa.rpc.context.RpcInvokeContext;
import java.util.HashMap;
import java.util.Map;
import mesh.apps.Console;
import mesh.apps.Flags;
import mesh.apps.ShopBase;

/** A SOFARPC provider on one port: {@code --host, --port, --label, --unique-id, --mesh http://sidecar:13330, --nacos host:port}. */
public final class Provider {
    private Provider() {}

    private static final class Service extends ShopBase implements SofaShop {
        Service(String label) {
            super(label);
        }

        @Override
        public Map<String, String> headers() {
            Map<String, String> received =
                    new HashMap<>(RpcInvokeContext.getContext().getAllRequestBaggage());
            RpcInvokeContext.getContext().putResponseBaggage("x-reply", "done");
            RpcInvokeContext.getContext().putResponseBaggage("x-reply-user", received.get("x-user"));
            return received;
        }
    }

    public static void main(String[] args) {
        Console console = new Console();
        Flags flags = new Flags(args);
        ServerConfig server = new ServerConfig()
                .setProtocol("bolt")
                .setHost(flags.get("host", "127.0.0.1"))
                .setPort(flags.number("port", 12199))
                .setDaemon(false);
        ProviderConfig<SofaShop> provider = new ProviderConfig<SofaShop>()
                .setApplication(new ApplicationConfig().setAppName("sofa-provider"))
                .setInterfaceId(SofaShop.class.getName())
                .setRef(new Service(flags.get("label", "v1")))
                .setServer(server)
                .setRegister(false);
        String uniqueId = flags.get("unique-id", null);
        if (uniqueId != null) {
            provider.setUniqueId(uniqueId);
        }
        String mesh = flags.get("mesh", null);
        if (mesh != null) {
            provider.setRegister(true);
            provider.setRegistry(new RegistryConfig().setProtocol("mesh").setAddress(mesh));
        }
        String nacos = flags.get("nacos", null);
        if (nacos != null) {
            // Not the machine's own address.
            server.setVirtualHost(flags.require("host"));
            provider.setRegister(true);
            provider.setRegistry(new RegistryConfig().setProtocol("nacos").setAddress(nacos));
        }
        provider.export();
        console.provide();
    }
}
