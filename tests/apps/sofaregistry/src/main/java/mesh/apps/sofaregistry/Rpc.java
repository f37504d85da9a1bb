package mesh.apps.sofaregistry;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * SOFARPC on the registry. {@code export HOST PORT LABEL UNIQUE-ID WEIGHT} serves {@link Greeter} and registers it ({@code -}
 * is no unique id), {@code serve} with the same words does not register it, {@code unexport LABEL} ends either,
 * {@code refer UNIQUE-ID} looks for providers, {@code call UNIQUE-ID NAME} calls one of them and answers
 * {@code LABEL greets NAME}.
 */
final class Rpc {
    private static final List<String> COMMANDS = List.of("export", "serve", "unexport", "refer", "call");
    private static final int TIMEOUT_MILLIS = 20_000;

    private final RegistryConfig registry;
    private final Map<String, ProviderConfig<Greeter>> providers = new HashMap<>();
    private final Map<String, Greeter> consumers = new HashMap<>();

    Rpc(String address) {
        registry = new RegistryConfig().setProtocol("sofa").setAddress(address);
    }

    boolean knows(String command) {
        return COMMANDS.contains(command);
    }

    String run(String[] words) {
        switch (words[0]) {
            case "export", "serve" -> {
                String label = words[3];
                ServerConfig server = new ServerConfig()
                        .setProtocol("bolt")
                        .setHost(words[1])
                        .setPort(Integer.parseInt(words[2]))
                        .setVirtualHost(words[1])
                        .setVirtualPort(Integer.parseInt(words[2]))
                        .setDaemon(true);
                ProviderConfig<Greeter> provider = new ProviderConfig<Greeter>()
                        .setApplication(new ApplicationConfig().setAppName("greeter-provider"))
                        .setInterfaceId(Greeter.class.getName())
                        .setRef(name -> label + " greets " + name)
                        .setServer(server)
                        .setWeight(Integer.parseInt(words[5]))
                        .setRegistry(registry)
                        .setRegister(words[0].equals("export"))
                        .setRepeatedExportLimit(-1);
                if (!words[4].equals("-")) {
                    provider.setUniqueId(words[4]);
                }
                provider.export();
                providers.put(label, provider);
            }
            case "unexport" -> providers.remove(words[1]).unExport();
            case "refer" -> {
                ConsumerConfig<Greeter> consumer = new ConsumerConfig<Greeter>()
                        .setApplication(new ApplicationConfig().setAppName("greeter-consumer"))
                        .setInterfaceId(Greeter.class.getName())
                        .setRegistry(registry)
                        .setTimeout(TIMEOUT_MILLIS)
                        .setConnectTimeout(5_000)
                        .setReconnectPeriod(2_000)
                        .setRetries(0)
                        .setInJVM(false)
                        .setRepeatedReferLimit(-1);
                if (!words[1].equals("-")) {
                    consumer.setUniqueId(words[1]);
                }
                consumers.put(words[1], consumer.refer());
            }
            default -> {
                return consumers.get(words[1]).greet(words[2]);
            }
        }
        return "done";
    }
}
